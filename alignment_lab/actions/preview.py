"""action=preview: the rows as the model will see them, in the terminal and as preview.html.

Uses a tokenizer, no weights and no accelerator. What is shown are the arrays that training takes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from .. import content, data
from ..config import Experiment, Format, Truncation, describe_difference, to_plain
from ..data.mixture import describe_unused
from ..distributed.environment import settle_environment
from ..distributed.launch import is_run_leader
from ..models.locate import existing_folder, locate_tokenizer
from ..report.render.preview import Kind, Preview, show_preview, write_preview_page
from ..runtime import folders
from ..runtime.errors import UserError
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from . import preview_counts, preview_rows, tokenized
from .preview_lines import describe_missing
from .preview_tokens import Decoder
from .train import prepare_libraries

COUNTED_ROWS = 20_000  # whose lengths are drawn: the first ones, as training shuffles them
NO_LIMIT = 2**31 - 1  # as data.max_length: nothing is cut
LEGENDS = {
    Format.conversation: "the assistant's answers, and what ends them: the loss is over these",
    Format.text: "every token but a document's first, which nothing predicts",
    Format.preference: "the answers: their log-probabilities are compared",
    Format.unpaired: "the answer: its log-probability goes up where it is desirable, and down where not",
}
REWARD_LEGEND = "the answers: the reward is read at their last token"


def run_preview(spec: Experiment, run: RunDirectory) -> None:
    """Print rows and what there is to say of all of them; write preview.html into the run directory.

    Raises UserError where the data, or the rows that are asked for, cannot be shown.
    """
    settle_environment()
    prepare_libraries()
    leads = is_run_leader(spec.parallel)
    console = Console(quiet=not leads)
    splits = data.load_rows(spec)
    preview = make_preview(spec, splits, locate_tokenizer(spec.model))
    other = compare_with_run(spec, run, splits)
    if other:
        preview = replace(preview, notes=[other, *preview.notes])
    show_preview(preview, console)
    if leads and other:
        console.print(f"\n{other}", highlight=False, markup=False, soft_wrap=True)
    elif leads:
        page = _write(preview, run)
        console.print(f"\nPage: {page}", highlight=False, markup=False, soft_wrap=True)


def compare_with_run(spec: Experiment, run: RunDirectory, splits: data.Splits) -> str | None:
    """A sentence where a run lies in this directory that trained on other rows than there are now, or is
    another experiment; None where it is none, or the same.
    """
    recorded, state = read_json(run.provenance_file) or {}, run.state()
    before = (recorded.get("content") or {}).get("data")
    if not state.get("id"):
        return None
    page = "no page is written into its directory: name another one with hydra.run.dir=DIRECTORY"
    if state["id"] != spec.run_id:
        difference = describe_difference(run.spec(), to_plain(spec))
        return f"{run.path}: {difference}: this is the run of another experiment, and {page}."
    if before is None:
        return None
    changes = content.find_changes(recorded, spec, existing_folder(spec.model), splits)
    if not changes and before != splits.digest:  # a large file, whose digest is not read for this
        changes = [f"data={spec.data.name} has other rows"]
    if not changes:
        return None
    return f"{run.path}: {'; '.join(changes)}: these are not the rows that this run trained on, and {page}."


def make_preview(spec: Experiment, splits: data.Splits, folder: Path) -> Preview:
    """All that is shown, from the rows and the tokenizer in `folder`. Raises UserError."""
    tokens = tokenized.tokenize(spec, splits, folder, Console(quiet=True))
    decoder, tokenize = Decoder(tokens.tokenizer), data.TOKENIZE[spec.method.format]

    def without_limit(rows: list[data.Row]) -> data.Tokenized:
        return tokenize(tokens.tokenizer, rows, NO_LIMIT)

    # the bad half of a pair loses as much of its prompt as the good half needs
    shortest_cut = spec.data.max_length // (2 if spec.data.truncation is Truncation.prompt else 1)
    rows = tokens.heldout if spec.preview.heldout else tokens.train
    first = [rows[index] for index in range(min(len(rows), COUNTED_ROWS))]
    whole = preview_rows.uncut_rows(without_limit, first, shortest_cut)
    origins = preview_rows.Origins(rows, splits.tables["heldout" if spec.preview.heldout else "train"])
    indices = preview_rows.choose(spec, rows, whole, origins)
    on_lines = {origins.place(index) for index in indices} if spec.preview.lines else set()
    missing = describe_missing(spec, splits, tokens.counts, on_lines)
    if missing and not indices:
        lines = ",".join(map(str, spec.preview.lines or ()))
        raise UserError(f"preview.lines=[{lines}]: {'; '.join(missing)}.")
    facts = {"method": spec.method.name, "model": spec.model.name, "data": spec.data.name}
    shown = [rows[index] for index in indices]
    places = [preview_rows.describe_place(index, spec, origins) for index in indices]
    uncut = preview_rows.uncut_rows(without_limit, shown, shortest_cut)
    return Preview(
        title=spec.name,
        facts=facts | {"data.max_length": f"{spec.data.max_length:,}"},
        legend=_legend(spec),
        rows=[
            preview_rows.show_row(row, full, place, spec, decoder)
            for row, full, place in zip(shown, uncut, places, strict=True)
        ],
        rows_note=_rows_note(spec, len(shown), len(rows)),
        notes=[
            *(f"not shown: {clause}" for clause in missing),
            *data.readers.unread_splits(spec.data),
            *tokens.lines,
            *describe_unused(splits.unused),
        ],
        tables=[preview_counts.sources(splits), *preview_counts.baselines(spec, first)],
        histograms=preview_counts.histograms(spec, whole, len(rows)),
        left_out=preview_counts.left_out(tokens.splits),
        template=preview_counts.template_tokens(spec, without_limit, decoder),
    )


def _legend(spec: Experiment) -> dict[Kind, str]:
    is_reward = spec.method.name == "reward"
    meaning = REWARD_LEGEND if is_reward else LEGENDS[spec.method.format]
    legend = {Kind.trained: meaning, Kind.seen: "context: read, and not trained"}
    if spec.method.format is not Format.text:  # which is split, and never cut
        legend[Kind.cut] = f"cut off at data.max_length={spec.data.max_length}: the model never sees it"
    return legend


def _rows_note(spec: Experiment, shown: int, rows: int) -> str:
    what = preview_rows.UNITS[spec.method.format] + "s"
    side = "held-out" if spec.preview.heldout else "training"
    more = "preview.rows=N shows more, preview.lines=[N,...] those of these lines"
    return f"{shown:,} of {rows:,} {side} {what} are shown, in the order of training; {more}"


def _write(preview: Preview, run: RunDirectory) -> Path:
    """The page in the run directory; a file of its name that the lab did not write is set aside."""
    page = run.preview_file
    if folders.is_foreign_page(page):
        folders.set_aside(page)
    folders.make_folder(run.path)
    return write_preview_page(preview, page)
