"""A preview in the terminal.

Nothing of a row reaches the terminal as it is: control characters are shown as signs, and rich is given no
markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as RichTable
from rich.text import Text

from ..formatting import clip
from ..terminal import show
from .bins import describe, share_over, to_bins
from .parts import LINE_END, Histogram, Kind, LeftOut, Part, Preview, Run, ShownRow, Table, Token

HEAD, TAIL = 120, 40  # tokens of a run
SIDE_BY_SIDE = 100  # columns of a terminal, from which on two answers stand beside each other
BARS = " ▁▂▃▄▅▆▇█"
MOST_BARS = 40
# Two shades for each kind: neighboring tokens differ, so that each can be told from the next
STYLES = {
    Kind.trained: ("black on #a8e6bd", "black on #7fd3a0"),
    Kind.seen: ("", "underline"),
    Kind.cut: ("strike #b0483a", "strike underline #b0483a"),
}
LABELS = {Kind.trained: "bold green", Kind.seen: "dim", Kind.cut: "bold red"}
SPECIAL = "bold"
SEPARATOR = "│"  # of tokens, where there are no colors


def show_preview(preview: Preview, console: Console) -> None:
    """Print the rows, and what there is to say of all of them."""
    colored = console.color_system is not None
    show(Text.assemble((clip(preview.title), "bold"), "  ", (_join_facts(preview), "dim")), console)
    show(_legend(preview, colored), console)
    for row in preview.rows:
        show(Padding(_row(row, console.width, colored), (1, 0, 0, 0)), console)
    show(Padding(Text(preview.rows_note, "dim"), (1, 0, 0, 0)), console)
    for part in _about_all(preview, colored):
        show(Padding(part, (1, 0, 0, 0)), console)


def _join_facts(preview: Preview) -> str:
    return ", ".join(f"{name} {clip(value)}" for name, value in preview.facts.items())


def _legend(preview: Preview, colored: bool) -> RenderableType:
    grid = _grid()
    for kind, meaning in preview.legend.items():
        grid.add_row(Text(kind.value, STYLES[kind][0] if colored else ""), Text(meaning, "dim"))
    sign = f"{LINE_END} ends a line, ␣ is a token of spaces"
    how = "shades alternate from token to token" if colored else f"{SEPARATOR} separates tokens"
    grid.add_row("", Text(f"{sign}; {how}", "dim"))
    return grid


def _grid() -> RichTable:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _row(row: ShownRow, width: int, colored: bool) -> RenderableType:
    shown: list[RenderableType] = [Rule(Text(clip(row.place), "bold"), align="left", style="dim")]
    shown += [_part(part, colored) for part in row.parts]
    if len(row.beside) > 1 and width >= SIDE_BY_SIDE:
        columns = RichTable.grid(padding=(0, 2), expand=True)
        for _ in row.beside:
            columns.add_column(ratio=1, overflow="fold")
        columns.add_row(*(_part(part, colored) for part in row.beside))
        shown.append(columns)
    else:
        shown += [_part(part, colored) for part in row.beside]
    return Group(*shown)


def _part(part: Part, colored: bool) -> RenderableType:
    """The title, and a line for each run: its kind, its number of tokens, its tokens."""
    grid = _grid()
    for run in part.runs:
        label = Text(f"{run.kind.value} {run.count:,}", LABELS[run.kind])
        grid.add_row(label, _tokens(run.clipped(HEAD, TAIL), colored))
    for kind, count in part.omitted.items():
        grid.add_row(Text(f"{kind.value} {count:,}", LABELS[kind]), Text("… not shown", "dim"))
    return Group(Text.assemble((part.title, "bold"), "  ", (part.summary, "dim")), grid)


def _tokens(run: Run, colored: bool) -> Text:
    text = Text()
    _append(text, run.head, run.kind, colored)
    if run.omitted:
        text.append(f" … {run.omitted:,} more … ", "italic dim")
        _append(text, run.tail, run.kind, colored)
    if text.plain.endswith("\n"):  # the next run begins a line by itself
        text.right_crop(1)
    return text


def _append(text: Text, tokens: Sequence[Token], kind: Kind, colored: bool) -> None:
    for place, token in enumerate(tokens):
        style = STYLES[kind][place % 2] if colored else ""
        text.append(token.visible, f"{style} {SPECIAL}".strip() if token.special else style)
        if not colored and place + 1 < len(tokens):
            text.append(SEPARATOR)


def _about_all(preview: Preview, colored: bool) -> Iterator[RenderableType]:
    yield from (_table(table) for table in preview.tables)
    if preview.notes:
        yield Group(*(Text(note) for note in preview.notes))
    if preview.histograms:
        yield _histograms(preview.histograms)
    if preview.left_out:
        yield _left_out(preview.left_out)
    if preview.template:
        grid = _grid()
        for name, tokens in preview.template.items():
            added = Text()
            _append(added, tokens, Kind.seen, colored)
            grid.add_row(Text(name, "dim"), added if tokens else Text("nothing", "dim"))
        yield Group(Text("What the template adds", "bold"), grid)


def _table(table: Table) -> RenderableType:
    rich = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(table.headings):
        rich.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        rich.add_row(*(Text(clip(cell)) for cell in row))
    note = [Text(table.note, "dim")] if table.note else []
    return Group(Text(table.title, "bold"), rich, *note)


def _histograms(histograms: Sequence[Histogram]) -> RenderableType:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for histogram in histograms:
        lengths, bins = histogram.lengths, to_bins(histogram.lengths, MOST_BARS)
        over = share_over(lengths, histogram.limit) if histogram.limit and lengths else ""
        facts = "; ".join(filter(None, (describe(lengths), over, histogram.note)))
        within = bins.counts if histogram.limit is None else bins.counts[: histogram.limit // bins.width]
        most = max(bins.counts, default=0) or 1
        drawn = "".join(BARS[-(-8 * count // most)] for count in bins.counts)
        bars = Text.assemble((drawn[: len(within)], "green"), (drawn[len(within) :], "red"))
        grid.add_row(Text(histogram.title), bars, Text(facts, "dim"))
    return Group(Text("Lengths in tokens, from 0 on; before anything is cut", "bold"), grid)


def _left_out(groups: Sequence[LeftOut]) -> RenderableType:
    lines = [Text("Left out", "bold")]
    for group in groups:
        lines.append(Text(f"{group.count:,}: {clip(group.reason)}"))
        lines += [Text(f"    {clip(example)}", "dim") for example in group.examples]
    return Group(*lines)
