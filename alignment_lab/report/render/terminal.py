"""A run in the terminal: its numbers before and after, and its first samples. Plain text where nobody watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...runtime.run_directory import RunDirectory
from ..study import comparability, runs
from ..study.runs import RunRecord
from . import text

STATE_STYLES = {"finished": "green", "failed": "bold red", "unreadable": "bold red"} | dict.fromkeys(
    ("running", "interrupted"), "yellow"
)
VERDICTS = {True: Text(" right", "green"), False: Text(" wrong", "red"), None: Text("")}


def before_after(report: Mapping[str, Any]) -> Table:
    """The metrics of one report.json: name, before and after with their 95% intervals, and n."""
    table = Table(
        box=SIMPLE_HEAD, title="Held-out rows, before and after", title_justify="left", pad_edge=False
    )
    for heading in ("metric", "before", "after", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right", overflow="fold")
    metrics = report.get("metrics") or {}
    for name in text.ordered_metrics(metrics):
        pair = metrics[name] or {}
        estimates = [text.with_interval(pair.get(when)) for when in ("before", "after")]
        table.add_row(Text(name), *map(Text, estimates), text.number(text.n_of_metric(pair)))
    return table


def samples(run: RunDirectory, count: int = 3) -> RenderableType:
    """The first `count` generations of a run, before and after: the first, so that nobody chose them."""
    rows = run.samples()
    if not rows:
        return Text("No samples were generated.", style="dim")
    shown = rows[:count]
    title = Text(f"The first {len(shown)} of {len(rows)} held-out prompts, not chosen", style="italic")
    return Group(title, *(Padding(_sample(row), (1, 0, 0, 0)) for row in shown))


def _sample(row: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(text.conversation(row.get("prompt")), "bold"))
    for when in ("before", "after"):
        verdict = VERDICTS.get(row.get(f"{when}_correct"), Text(""))
        table.add_row(Text(when) + verdict, _answer(row.get(when)))
    if row.get("expected") is not None:
        table.add_row("expected", _answer(row["expected"]))
    return table


def _answer(answer: Any) -> Text:
    if answer is None:
        return Text("(not generated)", "dim")
    return Text(text.clip(answer)) if str(answer).strip() else Text("(empty)", "dim")


def error_of(cell: RunRecord) -> Text:
    """Why a run did not finish."""
    return Text.assemble((f"{cell.label} {cell.status}: ", "bold red"), text.clip(cell.error))


def show_run(run: RunDirectory, console: Console) -> None:
    """Print what a run came to: its state, the metrics before and after, three samples, and where the page lies."""
    cell = runs.load_record(run)
    show(_heading_of(cell), console)
    if cell.error:
        show(error_of(cell), console)
    if cell.metrics:
        show(before_after(cell.report), console)
        for note in comparability.notes([cell]):
            show(Text(note, "dim"), console)
    show(Padding(samples(run), (1, 0)), console)
    remedy = f"none yet; python -m alignment_lab.report {run.path}"
    show(Text(f"Page: {run.page_file if run.page_file.exists() else remedy}"), console, soft_wrap=True)


def show(part: RenderableType, console: Console, *, soft_wrap: bool = False) -> None:
    """Print as it is: what a model wrote is never taken for markup."""
    console.print(part, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


def _heading_of(cell: RunRecord) -> Text:
    name = cell.report.get("name") or cell.spec.get("name") or cell.run.path.name
    cost = [
        text.duration(cell.seconds.get("total")),
        f"{text.gigabytes(cell.report.get('peak_memory_gb'))} GB at the peak",
    ]
    heading = Text.assemble((text.clip(name), "bold"), "  ", (cell.status, STATE_STYLES.get(cell.status, "")))
    return heading + Text("  " + ", ".join(cost), "dim") if cell.report else heading
