"""A run and a comparison in the terminal. Plain text where nobody watches, and never a column too narrow to read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..artifacts import RunDirectory
from . import compare, text
from .compare import Cell

STATE_STYLES = {"finished": "green", "failed": "bold red", "unreadable": "bold red"} | dict.fromkeys(("running", "interrupted"), "yellow")
VERDICTS = {True: Text(" right", "green"), False: Text(" wrong", "red"), None: Text("")}


def before_after(report: Mapping[str, Any]) -> Table:
    """The metrics of one report.json: name, before and after with their 95% intervals, and n."""
    table = Table(box=SIMPLE_HEAD, title="Held-out rows, before and after", title_justify="left", pad_edge=False)
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


@dataclass(frozen=True)
class Column:
    """One column of the comparison: its heading, and what it says of a cell."""

    heading: str
    of: Callable[[Cell], str]
    justify: Any = "right"
    style: Callable[[Cell], str] = lambda cell: ""

    def width(self, cells: Iterable[Cell]) -> int:
        """Characters that the column takes, the gap to its neighbour included."""
        lines = [line for said in (self.heading, *map(self.of, cells)) for line in said.splitlines()]
        return 3 + max(Text(line).cell_len for line in lines)


def comparison(cells: Sequence[Cell], width: int = 80) -> RenderableType:
    """The cells side by side, in as many tables as `width` characters need; then warnings, errors and notes."""
    known = _known_columns(cells, width)
    room = width - sum(column.width(cells) for column in known)
    measured = _measured_columns(cells, stacked=False)
    if sum(column.width(cells) for column in measured) > room:
        measured = _measured_columns(cells, stacked=True)
    state = Column("state", lambda cell: cell.status, "left", lambda cell: STATE_STYLES.get(cell.status, ""))
    tables = [_table(cells, known + part) for part in _fitted([state, *measured], cells, room)]
    warned = [Text(f"Warning: {warning}", "bold red") for warning in compare.warnings(cells)]
    errors = [_error(cell) for cell in cells if cell.error]
    more = len(set(compare.metric_names(cells)) - set(text.FIRST_METRICS))
    said = [*compare.notes(cells), f"{more} more metrics: on the page and in report.json." if more else ""]
    notes = [Text(note, "dim") for note in said if note]
    return Group(*warned, *tables, *_seeds(cells), *errors, *notes)


def _seeds(cells: Sequence[Cell]) -> Iterator[Text]:
    """A line per setting that was run with several seeds: the mean over them, and the range."""
    for group in compare.across_seeds(cells):
        name = next((name for name in text.FIRST_METRICS if name in group["metrics"]), None)
        if name:
            spread = group["metrics"][name]
            least, most = text.number(spread["least"]), text.number(spread["most"])
            yield Text(f"{group['setting']}: {name} {text.number(spread['mean'])} over {group['seeds']} seeds ({least} to {most})")


def _known_columns(cells: Sequence[Cell], width: int) -> list[Column]:
    """What tells the cells apart: a column per differing key, or one with the label where those would take half the width."""
    keys = next((list(cell.differs) for cell in cells if cell.differs), [])
    names = compare.short_names(keys)
    columns = [Column(names[key], lambda cell, key=key: _differs(cell, key), "left") for key in keys]  # type: ignore[misc]
    if not keys or not all(cell.differs for cell in cells) or sum(column.width(cells) for column in columns) > width / 2:
        columns = [Column("cell", lambda cell: text.clip(cell.label, max(12, width // 3)), "left")]
    return columns


def _differs(cell: Cell, key: str) -> str:
    value = cell.differs.get(key, compare.MISSING)
    return text.ABSENT if value == compare.MISSING else text.clip(compare.shown(value), 24)


def _measured_columns(cells: Sequence[Cell], *, stacked: bool) -> list[Column]:
    """Metrics after training and costs; stacked, an interval stands below its value."""
    gap = "\n" if stacked else " "
    metrics = [
        Column(_heading(name, cells), lambda cell, name=name: _measured(cell, name, gap))  # type: ignore[misc]
        for name in compare.metric_names(cells)
        if name in text.FIRST_METRICS
    ]
    costs = [
        Column("time", lambda cell: text.duration(cell.seconds.get("total"))),
        Column("tokens/s", lambda cell: text.number(cell.report.get("tokens_per_second"))),
        Column("peak GB", lambda cell: text.gigabytes(cell.report.get("peak_memory_gb"))),
    ]
    return metrics + costs


def _broken(name: str, width: int = 15) -> list[str]:
    """A metric's name in lines of about `width`, broken after a slash or an underscore."""
    lines = [""]
    for part in re.findall(r"[^/_]*[/_]?", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _measured(cell: Cell, name: str, gap: str) -> str:
    return f"{text.point(cell.after(name))}{gap}{text.interval(cell.after(name))}".rstrip()


def _heading(name: str, cells: Sequence[Cell]) -> str:
    counts = {n for cell in cells if (n := text.n_of(cell.after(name))) is not None}
    heading = "\n".join(_broken(name))
    return f"{heading}\nn={counts.pop()}" if len(counts) == 1 else heading


def _fitted(columns: Sequence[Column], cells: Sequence[Cell], room: int) -> Iterator[list[Column]]:
    """The columns in groups that fit into `room` characters; a column wider than that stands alone."""
    group: list[Column] = []
    for column in columns:
        if group and sum(member.width(cells) for member in [*group, column]) > room:
            yield group
            group = []
        group.append(column)
    yield group


def _table(cells: Sequence[Cell], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(Text(column.heading), justify=column.justify, overflow="fold", vertical="top")
    for cell in cells:
        table.add_row(*(Text(column.of(cell), column.style(cell)) for column in columns))
    return table


def _error(cell: Cell) -> Text:
    return Text.assemble((f"{cell.label} {cell.status}: ", "bold red"), text.clip(cell.error))


def show_run(run: RunDirectory, console: Console) -> None:
    """Print what a run came to: its state, the metrics before and after, three samples, and where the page lies."""
    cell = compare.load(run)
    show(_heading_of(cell), console)
    if cell.error:
        show(_error(cell), console)
    if cell.metrics:
        show(before_after(cell.report), console)
        for note in compare.notes([cell]):
            show(Text(note, "dim"), console)
    show(Padding(samples(run), (1, 0)), console)
    remedy = f"none yet; python -m alignment_lab.report {run.path}"
    show(Text(f"Page: {run.page_file if run.page_file.exists() else remedy}"), console, soft_wrap=True)


def show(part: RenderableType, console: Console, *, soft_wrap: bool = False) -> None:
    """Print as it is: what a model wrote is never taken for markup."""
    console.print(part, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


def _heading_of(cell: Cell) -> Text:
    name = cell.report.get("name") or cell.spec.get("name") or cell.run.path.name
    cost = [text.duration(cell.seconds.get("total")), f"{text.gigabytes(cell.report.get('peak_memory_gb'))} GB at the peak"]
    heading = Text.assemble((text.clip(name), "bold"), "  ", (cell.status, STATE_STYLES.get(cell.status, "")))
    return heading + Text("  " + ", ".join(cost), "dim") if cell.report else heading
