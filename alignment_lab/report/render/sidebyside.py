"""A comparison in the terminal: in as many tables as its width needs, and never a column too narrow to read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..study import comparability, drift, runs
from ..study.configurations import Configuration, counted
from ..study.runs import RunRecord
from ..study.study import Study
from . import text, words
from .terminal import STATE_STYLES

VERDICT_STYLES = {"higher": "bold", "lower": "bold", "reference": "green"}


@dataclass(frozen=True)
class Column:
    """One column: its heading, and what it says of a row, which is a cell or a configuration."""

    heading: str
    of: Callable[[Any], str]
    justify: Any = "right"
    style: Callable[[Any], str] = lambda row: ""

    def width(self, rows: Sequence[Any]) -> int:
        """Characters that the column takes, the gap to its neighbour included."""
        lines = [line for said in (self.heading, *map(self.of, rows)) for line in said.splitlines()]
        return 3 + max(Text(line).cell_len for line in lines)


def comparison(study: Study, width: int = 80) -> RenderableType:
    """Warnings first, then the table, what was found, what was left out and why, and how to read it."""
    warned = [Text(f"Warning: {warning}", "bold red") for warning in study.warnings]
    by_seed = study.seeds > 1
    rows: Sequence[Any] = [one for one in study.configurations if one.seeds] if by_seed else study.cells
    columns = _configuration_columns(study, rows, width) if by_seed else _cell_columns(study, rows, width)
    tables = _tables(rows, *columns, width) if rows else []
    found = [Text(sentence) for sentence in words.findings(study)]
    missing = [_left_out(cell, why) for cell, why in words.left_out(study.cells)]
    return Group(*warned, *tables, *found, *missing, *(Text(note, "dim") for note in _notes(study)))


def _notes(study: Study) -> list[str]:
    more = len(set(study.metrics) - set(text.FIRST_METRICS))
    machines = dict.fromkeys(drift.hardware(cell) for cell in study.cells if counted(cell))
    return [
        *comparability.notes(study.cells),
        *([f"Time, tokens/s and memory are those of: {'; '.join(machines)}."] if machines else []),
        *([f"{more} more metrics: on the page and in report.json, report.csv."] if more else []),
    ]


def _left_out(cell: RunRecord, why: str) -> Text:
    style = STATE_STYLES.get(cell.status, "bold")
    return Text.assemble((f"Left out: {cell.label}, {cell.status}: ", style), text.clip(why))


def _cell_columns(study: Study, cells: Sequence[RunRecord], width: int) -> tuple[list[Column], list[Column]]:
    keys = next((list(cell.differs) for cell in cells if cell.differs), [])
    known = _known(keys, cells, width, lambda cell: cell.differs, lambda cell: cell.label)
    state = Column("state", lambda cell: cell.status, "left", lambda cell: STATE_STYLES.get(cell.status, ""))
    labels = {id(cell): one for one in study.configurations for cell in one.cells}
    verdict = _verdict_columns(study, lambda cell: labels[id(cell)])
    costs = [
        Column("time", lambda cell: text.duration(cell.seconds.get("total"))),
        Column("tokens/s", lambda cell: text.number(cell.report.get("tokens_per_second"))),
        Column("peak GB", lambda cell: text.gigabytes(cell.report.get("peak_memory_gb"))),
    ]
    return known, [state, *_metrics(study, cells, lambda cell, name: cell.after(name), verdict), *costs]


def _configuration_columns(
    study: Study, rows: Sequence[Configuration], width: int
) -> tuple[list[Column], list[Column]]:
    keys = [
        key for key in next((list(one.settings) for one in rows if one.settings), []) if _tells(rows, key)
    ]
    known = _known(keys, rows, width, lambda one: one.settings, lambda one: one.label)
    seeds = Column("seeds", lambda one: str(len(one.seeds)))
    costs = [
        Column("time", lambda one: text.duration(_mean(one, lambda cell: cell.seconds.get("total")))),
        Column(
            "tokens/s", lambda one: text.number(_mean(one, lambda cell: cell.report.get("tokens_per_second")))
        ),
        Column(
            "peak GB", lambda one: text.gigabytes(_mean(one, lambda cell: cell.report.get("peak_memory_gb")))
        ),
    ]
    verdict = _verdict_columns(study, lambda one: one)
    return known, [seeds, *_metrics(study, rows, lambda one, name: one.shown(name), verdict), *costs]


def _tells(rows: Sequence[Configuration], key: str) -> bool:
    return len({repr(one.settings.get(key)) for one in rows}) > 1


def _mean(one: Configuration, of: Callable[[RunRecord], Any]) -> float | None:
    found = [value for cell in one.seeds.values() if isinstance(value := of(cell), int | float)]
    return sum(found) / len(found) if found else None


def _known(
    keys: Sequence[str],
    rows: Sequence[Any],
    width: int,
    settings: Callable[[Any], dict[str, Any]],
    label: Callable[[Any], str],
) -> list[Column]:
    """What tells the rows apart: a column per differing key, or one with the label where those would take half the width."""
    names = runs.short_names(keys)
    columns = [Column(names[key], lambda row, key=key: _setting(settings(row), key), "left") for key in keys]  # type: ignore[misc]
    if (
        not keys
        or not all(settings(row) for row in rows)
        or sum(column.width(rows) for column in columns) > width / 2
    ):
        columns = [Column("cell", lambda row: text.clip(label(row), max(12, width // 3)), "left")]
    return columns


def _setting(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key, runs.MISSING)
    return text.ABSENT if value == runs.MISSING else text.clip(runs.shown(value), 24)


def _verdict_columns(study: Study, of: Callable[[Any], Configuration]) -> list[Column]:
    """On the headline metric: the difference to the reference, and whether it is more than noise."""
    if study.reference is None or study.headline is None or len(study.configurations) < 2:
        return []
    found, reference = study.verdicts.get(study.headline, {}), study.reference

    def said(row: Any) -> str:
        one = found.get(of(row).label)
        return (
            "reference"
            if of(row) is reference
            else f"{words.verdict(one)}\n{words.p_value(one.p if one else None)}".strip()
        )

    heading = "to the best" if study.picked else "to the baseline"
    difference = Column(
        heading, lambda row: words.difference(one.difference if (one := found.get(of(row).label)) else None)
    )
    return [
        difference,
        Column("verdict", said, "left", lambda row: VERDICT_STYLES.get(said(row).partition("\n")[0], "")),
    ]


def _metrics(
    study: Study, rows: Sequence[Any], estimate: Callable[[Any, str], Any], verdict: Sequence[Column]
) -> list[Column]:
    """The metric that is judged by and the verdict first, then the other usual ones."""
    usual = [name for name in study.metrics if name in text.FIRST_METRICS and name != study.headline]

    def column(name: str) -> Column:
        return Column(_heading(name, rows, estimate), lambda row: _measured(estimate(row, name)))

    return [*([column(study.headline)] if study.headline else []), *verdict, *map(column, usual)]


def _measured(estimate: Any) -> str:
    return f"{text.point(estimate)} {text.interval(estimate)}".rstrip()


def broken(name: str, width: int = 15) -> list[str]:
    """A metric's name in lines of about `width`, broken after a slash or an underscore."""
    lines = [""]
    for part in re.findall(r"[^/_]*[/_]?", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _heading(name: str, rows: Sequence[Any], estimate: Callable[[Any, str], Any]) -> str:
    counts = {(n, _of(found)) for row in rows if (n := text.n_of(found := estimate(row, name))) is not None}
    heading = "\n".join(broken(name))
    if len(counts) != 1:
        return heading
    count, kind = counts.pop()
    return f"{heading}\n{f'{count} seeds' if kind == 'seeds' else f'n={count}'}"


def _of(estimate: Any) -> str:
    return estimate.get("of", "rows") if isinstance(estimate, dict) else "rows"


def _tables(rows: Sequence[Any], known: list[Column], measured: list[Column], width: int) -> list[Table]:
    room = width - sum(column.width(rows) for column in known)
    if sum(column.width(rows) for column in measured) > room:  # an interval stands below its value
        measured = [
            Column(one.heading, lambda row, one=one: _stacked(one.of(row)), one.justify, one.style)
            for one in measured
        ]  # type: ignore[misc]
    return [_table(rows, known + part) for part in _fitted(measured, rows, room)]


def _stacked(said: str) -> str:
    return said.replace(" [", "\n[")


def _fitted(columns: Sequence[Column], rows: Sequence[Any], room: int) -> Iterator[list[Column]]:
    """The columns in groups that fit into `room` characters; a column wider than that stands alone."""
    group: list[Column] = []
    for column in columns:
        if group and sum(member.width(rows) for member in [*group, column]) > room:
            yield group
            group = []
        group.append(column)
    yield group


def _table(rows: Sequence[Any], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(Text(column.heading), justify=column.justify, overflow="fold", vertical="top")
    for row in rows:
        table.add_row(*(Text(column.of(row), column.style(row)) for column in columns))
    return table
