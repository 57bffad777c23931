"""A comparison in the terminal: warnings, a table, findings, what was left out, how to read the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..study import comparability
from ..study.comparison import Comparison
from ..study.configurations import Configuration
from ..study.hardware import describe_hardware
from ..study.runs import RunRecord, all_varied_keys
from ..study.settings import MISSING, Settings, format_setting, short_names
from ..study.values import MetricValue, is_number, n_of, summary_metrics
from . import words
from .columns import Column, fit_tables
from .formatting import (
    ABSENT,
    clip,
    format_duration,
    format_gigabytes,
    format_measured,
    format_number,
    wrap_name,
)
from .terminal import STATE_STYLES

T = TypeVar("T", bound=RunRecord | Configuration)  # a row of the table
VERDICT_STYLES = {"higher": "bold", "lower": "bold", "reference": "green"}


def render_comparison(comparison: Comparison, width: int = 80) -> RenderableType:
    """The whole comparison. A row is a configuration where there are several seeds, else a single run."""
    warnings = [Text(f"Warning: {warning}", "bold red") for warning in comparison.warnings]
    tables = _configuration_tables if comparison.most_seeds > 1 else _run_tables
    at_equal_kl = comparison.frontier.sentences if comparison.frontier else []
    findings = [Text(sentence) for sentence in (*words.findings(comparison), *at_equal_kl)]
    left_out = [_left_out(record, reason) for record, reason in words.left_out(comparison.records)]
    notes = [Text(note, "dim") for note in _notes(comparison)]
    return Group(*warnings, *tables(comparison, width), *findings, *left_out, *notes)


def _notes(comparison: Comparison) -> list[str]:
    hidden = len(comparison.metrics) - len(summary_metrics(comparison.metrics))
    finished = [record for record in comparison.records if record.has_results]
    machines = dict.fromkeys(map(describe_hardware, finished))
    return [
        *comparability.notes(comparison.records),
        *([f"Time, tokens/s and memory were measured on: {'; '.join(machines)}."] if machines else []),
        *([f"{hidden} more metrics: on the page and in report.json, report.csv."] if hidden else []),
    ]


def _left_out(record: RunRecord, reason: str) -> Text:
    style = STATE_STYLES.get(record.status, "bold")
    return Text.assemble((f"Left out: {record.label}, {record.status}: ", style), clip(reason))


def _run_tables(comparison: Comparison, width: int) -> list[Table]:
    records = comparison.records
    if not records:
        return []
    configurations = {id(record): each for each in comparison.configurations for record in each.records}
    row_heads = _row_heads(
        all_varied_keys(records), records, width, lambda record: record.varied, lambda record: record.label
    )
    columns: list[Column[RunRecord]] = [
        Column(
            "state",
            lambda record: record.status,
            "left",
            lambda record: STATE_STYLES.get(record.status, ""),
        ),
        *_metric_columns(
            comparison,
            records,
            lambda record, name: record.after(name),
            _verdict_columns(comparison, lambda record: configurations[id(record)]),
        ),
        *_cost_columns(records, lambda record: [record]),
    ]
    return fit_tables(records, row_heads, columns, width)


def _configuration_tables(comparison: Comparison, width: int) -> list[Table]:
    rows = [each for each in comparison.configurations if each.seeds]
    if not rows:
        return []
    keys = next((list(each.settings) for each in rows if each.settings), [])
    varied = [key for key in keys if len({repr(each.settings.get(key)) for each in rows}) > 1]
    row_heads = _row_heads(varied, rows, width, lambda each: each.settings, lambda each: each.label)
    columns: list[Column[Configuration]] = [
        Column("seeds", lambda each: str(len(each.seeds))),
        *_metric_columns(
            comparison,
            rows,
            lambda each, name: each.measured(name),
            _verdict_columns(comparison, lambda each: each),
        ),
        *_cost_columns(rows, lambda each: list(each.by_seed.values())),
    ]
    return fit_tables(rows, row_heads, columns, width)


def _cost_columns(rows: Sequence[T], records: Callable[[T], list[RunRecord]]) -> list[Column[T]]:
    """Time, speed and memory: means over the records of a row. Attempts where a run took several."""

    def mean(row: T, value: Callable[[RunRecord], object]) -> float | None:
        numbers = [number for record in records(row) if is_number(number := value(record))]
        return sum(numbers) / len(numbers) if numbers else None

    def reported(key: str) -> Callable[[RunRecord], object]:
        return lambda record: record.report.get(key)

    def attempts(row: T) -> int:
        return max((record.attempts or 0 for record in records(row)), default=0)

    several = any(attempts(row) > 1 for row in rows)
    return [
        *([Column("attempts", lambda row: str(attempts(row) or ABSENT))] if several else []),
        Column("time", lambda row: format_duration(mean(row, lambda record: record.seconds.get("total")))),
        Column("tokens/s", lambda row: format_number(mean(row, reported("tokens_per_second")))),
        Column("peak GB", lambda row: format_gigabytes(mean(row, reported("peak_memory_gb")))),
    ]


def _row_heads(
    keys: Sequence[str],
    rows: Sequence[T],
    width: int,
    settings: Callable[[T], Settings],
    label: Callable[[T], str],
) -> list[Column[T]]:
    """A column for each varied key, or one of labels where those would take half the width."""
    names = short_names(keys)

    def setting_column(key: str) -> Column[T]:
        return Column(names[key], lambda row: _format_setting(settings(row), key), "left")

    columns = [setting_column(key) for key in keys]
    too_wide = sum(column.width(rows) for column in columns) > width / 2
    if not keys or too_wide or not all(settings(row) for row in rows):
        return [Column("run", lambda row: clip(label(row), max(12, width // 3)), "left")]
    return columns


def _format_setting(settings: Settings, key: str) -> str:
    value = settings.get(key, MISSING)
    return ABSENT if value == MISSING else clip(format_setting(value), 24)


def _verdict_columns(comparison: Comparison, configuration: Callable[[T], Configuration]) -> list[Column[T]]:
    """On the headline metric: the difference to the reference, and whether it is more than noise."""
    reference, verdicts = comparison.reference, comparison.headline_verdicts
    if reference is None or comparison.headline is None or len(comparison.configurations) < 2:
        return []

    def difference(row: T) -> str:
        return words.format_verdict_difference(verdicts.get(configuration(row).label))

    def outcome(row: T) -> str:
        if configuration(row) is reference:
            return "reference"
        verdict = verdicts.get(configuration(row).label)
        return f"{words.format_outcome(verdict)}\n{words.format_p(verdict.p if verdict else None)}".strip()

    def style(row: T) -> str:
        return VERDICT_STYLES.get(outcome(row).partition("\n")[0], "")

    heading = "vs. the best" if comparison.reference_is_best else "vs. the baseline"
    return [Column(heading, difference), Column("verdict", outcome, "left", style)]


def _metric_columns(
    comparison: Comparison,
    rows: Sequence[T],
    measured: Callable[[T, str], MetricValue | None],
    verdict_columns: Sequence[Column[T]],
) -> list[Column[T]]:
    """The headline metric with its verdict first, then the others of a summary."""
    others = [name for name in summary_metrics(comparison.metrics) if name != comparison.headline]

    def column(name: str) -> Column[T]:
        heading = _heading(name, [measured(row, name) for row in rows])
        return Column(heading, lambda row: format_measured(measured(row, name)))

    headline = [column(comparison.headline)] if comparison.headline else []
    return [*headline, *verdict_columns, *map(column, others)]


def _heading(name: str, values: Sequence[MetricValue | None]) -> str:
    """The metric's name in short lines, and n where it is the same in all rows."""
    heading = "\n".join(wrap_name(name))
    counts = {(n, _unit(value)) for value in values if (n := n_of(value)) is not None}
    if len(counts) != 1:
        return heading
    n, unit = counts.pop()
    return f"{heading}\n{f'{n} seeds' if unit == 'seeds' else f'n={n}'}"


def _unit(value: MetricValue | None) -> str:
    return value.get("unit", "rows") if isinstance(value, Mapping) else "rows"
