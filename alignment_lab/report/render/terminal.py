"""A run in the terminal: its metrics before and after, and its first samples."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...runtime.run_directory import RunDirectory
from ..study import comparability
from ..study.runs import LoggedRow, RunRecord, load_record
from ..study.values import n_of_metric, ordered_metrics
from .formatting import (
    clip,
    format_duration,
    format_gigabytes,
    format_measured,
    format_number,
    format_prompt,
    wrap_name,
)

WIDE, NARROW_NAME = 90, 22  # columns of a terminal, and of a metric's name where there are fewer
STATE_STYLES = {
    "finished": "green",
    "running": "yellow",
    "interrupted": "yellow",
    "failed": "bold red",
    "unreadable": "bold red",
}
CORRECTNESS = {True: Text(" right", "green"), False: Text(" wrong", "red"), None: Text("")}


def show(part: RenderableType, console: Console, *, soft_wrap: bool = False) -> None:
    """Print without markup, emoji and highlighting: generated text stays as it is."""
    console.print(part, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


def show_run(run: RunDirectory, console: Console) -> None:
    """Print the run's state, its metrics before and after, three samples, and where its page is."""
    record = load_record(run)
    show(_heading(record), console)
    if record.error:
        show(Text.assemble((f"{record.label} {record.status}: ", "bold red"), clip(record.error)), console)
    if record.metrics:
        show(before_after_table(record, console.width), console)
        for note in comparability.notes([record]):
            show(Text(note, "dim"), console)
    show(Padding(_first_samples(run.samples()), (1, 0)), console)
    page = run.page_file if run.page_file.exists() else f"none yet; python -m alignment_lab.report {run.path}"
    show(Text(f"Page: {page}"), console, soft_wrap=True)


def _heading(record: RunRecord) -> Text:
    name = record.report.get("name") or record.spec.get("name") or record.run.path.name
    state = (record.status, STATE_STYLES.get(record.status, ""))
    heading = Text.assemble((clip(name), "bold"), "  ", state)
    if not record.report:
        return heading
    duration = format_duration(record.seconds.get("total"))
    memory = format_gigabytes(record.report.get("peak_memory_gb"))
    attempts = f" in {record.attempts} attempts" if (record.attempts or 1) > 1 else ""
    return heading + Text(f"  {duration}{attempts}, peak memory {memory} GB", "dim")


def before_after_table(record: RunRecord, width: int) -> Table:
    """The metrics of one run: name, before and after with 95% intervals, and n. On a terminal of few columns
    long names take two lines.
    """
    name_width = width if width >= WIDE else NARROW_NAME
    table = Table(
        box=SIMPLE_HEAD, title="Held-out rows, before and after", title_justify="left", pad_edge=False
    )
    for heading in ("metric", "before", "after", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right", overflow="fold")
    for name in ordered_metrics(record.metrics):
        before, after = format_measured(record.before(name)), format_measured(record.after(name))
        lines, n = "\n".join(wrap_name(name, name_width)), format_number(n_of_metric(record.metrics[name]))
        table.add_row(Text(lines), Text(before), Text(after), n)
    return table


def _first_samples(samples: Sequence[LoggedRow], count: int = 3) -> RenderableType:
    """The first `count` samples, before and after: the first ones, so that they are not cherry-picked."""
    if not samples:
        return Text("No samples were generated.", style="dim")
    first = samples[:count]
    title = Text(f"The first {len(first)} of {len(samples)} held-out prompts, not selected", style="italic")
    return Group(title, *(Padding(_sample_table(row), (1, 0, 0, 0)) for row in first))


def _sample_table(row: LoggedRow) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(format_prompt(row.get("prompt")), "bold"))
    for when in ("before", "after"):
        correctness = CORRECTNESS.get(row.get(f"{when}_correct"), Text(""))
        table.add_row(Text(when) + correctness, _answer(row.get(when)))
    if row.get("expected") is not None:
        table.add_row("expected", _answer(row["expected"]))
    return table


def _answer(answer: object) -> Text:
    if answer is None:
        return Text("(not generated)", "dim")
    return Text(clip(answer)) if str(answer).strip() else Text("(empty)", "dim")
