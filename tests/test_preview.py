"""`action=preview`: what it shows is what training takes, and a row's text is text wherever it is shown."""

from __future__ import annotations

import io
import re
from itertools import chain

import numpy
import pytest
from rich.console import Console
from small_runs import TEXTS

from alignment_lab import data
from alignment_lab.actions import run_action, tokenized
from alignment_lab.actions.preview import make_preview
from alignment_lab.config import Format
from alignment_lab.config.no_effect import describe_no_effect
from alignment_lab.models.locate import locate_tokenizer
from alignment_lab.report.render.preview import Kind, show_preview, write_preview_page
from alignment_lab.report.render.preview.bins import to_bins
from alignment_lab.report.render.preview.parts import Run, Token
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.sweep.launchers.pool import PoolLauncher
from alignment_lab.sweep.preflight import CellCheck

TINY = ["model=tiny", "action=preview", "data=local"]
FAMILY = "👩‍👩‍👧"
SCRIPT = "<script>document.title='x'</script>"
HOSTILE = f"\x1b[2J\x1b]0;title\x07[red]no[/red] {SCRIPT} \x9b31m \u202e{FAMILY} שלום\r\n"


def pairs(count: int, words: int = 3) -> list[dict]:
    return [
        {"prompt": f"What is {number}?", "chosen": f"It is {number}. " * words, "rejected": "no " * words}
        for number in range(count)
    ]


@pytest.fixture
def preview(composed, write_rows, tokenizer, monkeypatch):
    """The preview of rows in a file; the tokenizer is loaded once for all of them."""
    monkeypatch.setattr(tokenized, "load_tokenizer", lambda *_: tokenizer)

    def make(rows, *overrides):
        spec = composed([*TINY, f"data.path={write_rows(rows)}", *overrides])
        return make_preview(spec, data.load_rows(spec), locate_tokenizer(spec.model))

    return make


@pytest.fixture
def printed():
    def show(made, width=120, color=None):
        file = io.StringIO()
        show_preview(made, Console(file=file, width=width, color_system=color, force_terminal=bool(color)))
        return file.getvalue()

    return show


def ids(part, *kinds):
    tokens = chain.from_iterable((*run.head, *run.tail) for run in part.runs if run.kind in kinds)
    return [token for each in tokens for token in each.ids]


# ---- what is shown is what training takes


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("dpo", 60), ("dpo", 512), ("kto", 60), ("sft", 60), ("cpt", 60),
        ("dpo data.truncation=prompt", 60), ("kto data.truncation=prompt", 60),
        ("sft data.truncation=prompt", 60),
    ],
)  # fmt: skip
def test_the_tokens_are_those_of_training(method, limit, preview, composed, write_rows, tokenizer):
    """Whatever is not cut is, token by token, the arrays; with the cut it is what a longer limit gives."""
    rows = [{"text": text} for text in TEXTS] if method == "cpt" else pairs(12, words=12)
    options = [*f"method={method}".split(), f"data.max_length={limit}", "preview.rows=50"]
    method = method.partition(" ")[0]
    made = preview(rows, *options)
    spec = composed([*TINY, f"data.path={write_rows(rows)}", *options])
    splits = data.load_rows(spec)
    kept, whole = (
        data.TOKENIZE[spec.method.format](tokenizer, splits.train, length, spec.data.truncation).rows
        for length in (limit, 10**6)
    )
    shown = [[*row.parts, *row.beside] for row in made.rows]
    not_cut = [list(chain.from_iterable(ids(part, Kind.seen, Kind.trained) for part in row)) for row in shown]
    columns = ("prompt_ids", "completion_ids", "chosen_ids", "rejected_ids", "input_ids")
    flat = [list(chain.from_iterable(row.get(column, ()) for column in columns)) for row in kept]
    assert not_cut == flat
    trained = [ids(part, Kind.trained) for row in shown for part in row]
    if method == "sft":
        assert trained == [[token for token in row["labels"] if token >= 0] for row in kept]
    elif method == "cpt":
        assert all(run.count == 1 for row in shown for part in row for run in part.runs[:1])
    else:
        assert sum(map(len, trained)) == sum(len(row.get(name, ())) for row in kept for name in columns[1:4])
    if method != "cpt":
        everything = [list(chain.from_iterable(ids(part, *Kind) for part in row)) for row in shown]
        assert everything == [[i for column in columns for i in row.get(column, ())] for row in whole]
        assert any(part.count(Kind.cut) for row in shown for part in row) == (limit == 60)


def test_texts_of_tokens_join_to_the_text(preview, tokenizer):
    """Spaces, and characters of several tokens; those that only together make one stand together."""
    said = f"  Ünïcode {FAMILY} 漢字\tשלום \U0001f9ff x\u00a0y "
    (row,) = preview(
        [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]}] * 3
        + pairs(0),
        "method=sft",
        "preview.rows=1",
    ).rows
    tokens = [token for run in row.parts[0].runs for token in (*run.head, *run.tail)]
    assert said.strip() in "".join(token.text for token in tokens)
    assert "\ufffd" not in "".join(token.text for token in tokens)
    assert any(len(token.ids) > 1 for token in tokens)
    assert [token.text for token in tokens if token.special] == tokenizer.convert_ids_to_tokens(
        [token.ids[0] for token in tokens if token.special]
    )


def test_the_template_is_told_apart_from_what_it_surrounds(preview):
    adds = preview(pairs(8)).template
    texts = {name: "".join(token.text for token in tokens) for name, tokens in adds.items()}
    assert texts["before a question"].endswith("<|im_start|>user\n")
    assert texts["between it and the answer"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert texts["at the answer's end, trained"] == "<|im_end|>"


# ---- which rows


def test_rows_that_are_asked_for(preview):
    rows = pairs(20)
    assert len(preview(rows, "preview.rows=3").rows) == 3
    cut = preview([*pairs(19), pairs(30, words=40)[29]], "preview.rows=1", "data.max_length=90")
    assert len(cut.rows) in (1, 2) and any(part.count(Kind.cut) for row in cut.rows for part in row.beside)
    assert "held-out" in preview(rows, "preview.heldout=true").rows[0].place
    with pytest.raises(UserError, match=r"^preview\.lines=\[900\]: no training row comes from this line; "):
        preview(rows, "preview.lines=[900]")


def test_options_out_of_range(error_message):
    assert error_message("preview.rows=-1").startswith("preview.rows=-1: must be 0 or more")
    assert error_message("preview.lines=[0]").startswith("preview.lines=[0]: lines are counted from 1")


def test_options_of_another_action_have_no_effect(composed):
    told = describe_no_effect(composed(["preview.rows=9", "plan.device=h100"]))
    assert "preview.rows=9 (action=train)" in told and "plan.device=h100 (action=train)" in told
    assert "preview" not in describe_no_effect(composed(["preview.rows=9", "action=preview"]))


@pytest.mark.parametrize("action", ["plan", "preview"])
def test_a_pool_of_cells_that_do_not_train_is_refused(action, composed):
    check = CellCheck(PoolLauncher, None)
    (sentence,) = check(composed([f"action={action}"]))
    assert (
        sentence == f"action={action}: a launcher of the lab runs cells that train; leave hydra/launcher out."
    )


# ---- a row's text is text


@pytest.mark.parametrize("color", [None, "truecolor"])
def test_nothing_of_a_row_acts_on_a_terminal(color, preview, printed):
    made = preview([{**row, "chosen": row["chosen"] + HOSTILE} for row in pairs(6)], "method=dpo")
    output = printed(made, color=color)
    assert not re.search(r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]", output)
    sequences = re.findall(r"\x1b.{0,2}", output)
    assert all(re.match(r"\x1b\[[\d]", each) for each in sequences), "rich's own colors alone"
    plain = re.sub(r"\x1b\[[\d;]*m|│", "", output)
    assert (
        "[red]" in plain and "␛[2J" in plain and "⟨U+202E⟩" in plain and FAMILY in plain and "שלום" in plain
    )


def test_nothing_of_a_row_is_markup_on_the_page(preview, tmp_path):
    made = preview([{**row, "chosen": row["chosen"] + HOSTILE} for row in pairs(6)], "name='<b>x<b>'")
    page = write_preview_page(made, tmp_path / "preview.html").read_text()
    assert "<script" not in page and "<b>" not in page and "\x1b" not in page
    assert "http" not in re.sub(r'data-id="[^"]*"', "", page.replace("https://", "http://").split("<body")[0])


def test_a_row_of_100000_tokens_is_shortened_with_a_count(preview, printed, tmp_path):
    rows = [{**row, "chosen": "word " * 100_000} for row in pairs(3)]
    made = preview(rows, "data.max_length=200000", "preview.rows=1")
    assert made.rows[0].beside[0].count(Kind.trained) > 100_000
    assert len(printed(made)) < 20_000 and re.search(r"… 99,\d{3} more …", printed(made))
    assert write_preview_page(made, tmp_path / "preview.html").stat().st_size < 200_000


@pytest.mark.parametrize("size", [1, 5, 160, 161, 162, 999])
def test_a_clipped_run_counts_all_of_its_tokens(size):
    run = Run(Kind.trained, tuple(Token("a", (1, 2)) for _ in range(size)))
    clipped = run.clipped(120, 40)
    assert clipped.count == run.count == 2 * size
    assert len(clipped.head) + len(clipped.tail) == min(size, 161 if size == 161 else 160)


@pytest.mark.parametrize("lengths", [[], [0], [7], [0, 1, 39, 40], [5, 1_234_567], list(range(1000))])
def test_bins_hold_every_length(lengths):
    bins = to_bins(lengths, 40)
    assert sum(bins.counts) == len(lengths) and len(bins.counts) <= 41
    assert str(bins.width).lstrip("0")[0] in "125"


# ---- the run directory


def test_it_writes_its_page_and_the_directory_can_be_trained_in(composed, write_rows, tmp_path, capsys):
    run, folder = RunDirectory(tmp_path / "run"), tmp_path / "rows"
    folder.mkdir()
    for split in ("train", "test"):
        write_rows(pairs(8)).rename(folder / f"{split}.jsonl")
    spec = composed([*TINY, f"data.path={folder}", "preview.rows=1"])
    run.path.mkdir()
    run.preview_file.write_text("mine")
    run_action(spec, run)
    printed = capsys.readouterr().out.replace("\n", "")
    assert f"Page: {run.preview_file}" in printed and "not read: test; hold one out" in printed
    assert sorted(file.name for file in run.path.iterdir()) == ["preview.html", "preview.html.set-aside0"]
    (run.path / "preview.html.set-aside0").unlink()
    run.require_own()


# ---- where rows come from, and where they went


def test_rows_of_a_mixture_are_told_by_source_file_and_line(composed, write_rows, tokenizer, monkeypatch):
    """Sources take turns; what was left out is shown with its place, and what nothing takes is named."""
    monkeypatch.setattr(tokenized, "load_tokenizer", lambda *_: tokenizer)
    good = [{**row, "id": number} for number, row in enumerate(pairs(40))]
    files = {
        "ours": write_rows([*good[:20], {"prompt": "?", "chosen": 5, "rejected": "no"}], "ours.jsonl"),
        "theirs": write_rows(
            [
                *({**row, "prompt": row["prompt"] + " Or?"} for row in good[20:]),
                {"prompt": "Why? " * 600, "chosen": "So.", "rejected": "No."},
            ],
            "theirs.jsonl",
        ),
    }
    sources = [f"+data/source@data.sources.{name}=local" for name in files]
    paths = [f"data.sources.{name}.path={path}" for name, path in files.items()]
    mixture = ["model=tiny", "action=preview", "data=mixture", "data.bad_rows=drop", *sources, *paths]

    def make(*overrides):
        spec = composed([*mixture, *overrides])
        splits = data.load_rows(spec)
        made = make_preview(spec, splits, locate_tokenizer(spec.model))
        assert [line["source"] for line in data.bad_rows(spec.data, splits.quarantine)] == ["ours", "theirs"]
        return made

    made = make("preview.rows=4")
    assert ["ours" in row.place for row in made.rows] == [True, False, True, False]
    for row in made.rows:
        name, line = re.search(r"(ours|theirs)\.jsonl:(\d+)$", row.place).groups()
        number = int(line) - 1 + 20 * (name == "theirs")
        text = "".join(token.text for run in row.parts[0].runs for token in run.head)
        assert f"What is {number}?" in text
    table = made.tables[0]
    ours, theirs, total = (dict(zip(table.headings, cells, strict=True)) for cells in table.rows)
    assert [cells["source"] for cells in (ours, theirs, total)] == ["ours", "theirs", "total"]
    assert int(ours["answers"]) == 2 * int(ours["to train on"]) and total["answers"] == "72"
    splits = data.load_rows(composed(mixture))
    for number, cells in enumerate((ours, theirs)):
        own = splits.train.select(numpy.flatnonzero(splits.train.numbers("table") == number))
        rows = data.TOKENIZE[Format.preference](tokenizer, own, 1024).rows
        assert cells["tokens"] == f"{sum(map(data.count_tokens, rows)):,}"
    places = {left_out.examples[0].partition(":")[0] for left_out in made.left_out if left_out.count == 1}
    assert places == {f"{files['ours']}, line 21", f"{files['theirs']}, line 21"}
    assert "ours: not used: id" in made.notes
    place = made.rows[1].place
    (again,) = make("preview.source=theirs", f"preview.lines=[{place.rpartition(':')[2]}]").rows
    assert again == made.rows[1]
    with pytest.raises(UserError, match=r"^preview\.source=x: no such source; give one of ours, theirs\.$"):
        make("preview.source=x")
