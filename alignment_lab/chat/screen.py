"""Where answers are shown while they are generated: a terminal, in one column or two, or a pipe."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .answer import AnswerStream
from .wrapping import WordWrap

MIN_COLUMN = 36  # characters of a column, below which two answers are shown one after the other
GAP = 3  # characters between two columns
MARGIN_LINES = 4  # of a terminal that a table leaves free while it grows
FRAMES = 10  # of a growing table, in a second
Footer = Callable[[AnswerStream], str]  # what is said below an answer


class Pipe:
    """Answers alone, on stdout; with two models each below a line with its name."""

    def show(self, names: Sequence[str], streams: Sequence[AnswerStream], footer: Footer) -> None:
        """Write each answer as it comes; what is to be said about it goes to stderr."""
        for name, stream in zip(names, streams, strict=True):
            if len(names) > 1:
                print(f"[{name}]")
            for piece in stream:
                print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
            print(flush=True)
            if note := footer(stream):
                print(f"{name}: {note}", file=sys.stderr)

    def tell(self, text: str) -> None:
        """What a command answers is no answer of a model."""
        print(text, file=sys.stderr)


class Terminal:
    """Answers on a terminal, with what is to be said below them."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def show(self, names: Sequence[str], streams: Sequence[AnswerStream], footer: Footer) -> None:
        """Show each answer as it comes: two beside each other where there is room."""
        if len(names) > 1 and self.console.width >= len(names) * MIN_COLUMN:
            return self._show_columns(names, streams, footer)
        for name, stream in zip(names, streams, strict=True):
            if len(names) > 1:
                self.console.print(Text(name, style="bold"))
            wrap = WordWrap(self.console.width)
            for piece in stream:
                print(wrap.feed(printable(piece)), end="", flush=True)
            print(wrap.flush())
            self.console.print(Text(footer(stream), style="dim"))
        return None

    def tell(self, text: str) -> None:
        """What a command answers."""
        wrap = WordWrap(self.console.width)
        self.console.print(Text(wrap.feed(text) + wrap.flush()), style="dim")

    def _show_columns(self, names: Sequence[str], streams: Sequence[AnswerStream], footer: Footer) -> None:
        width = (self.console.width - GAP * (len(names) - 1)) // len(names)
        titles = [Text(name, style="bold") for name in names]

        def growing() -> Table:
            """The ends of the answers, as much as the terminal has lines for."""
            height = max(1, self.console.height - MARGIN_LINES)
            answers = [Text(printable(stream.text)).wrap(self.console, width)[-height:] for stream in streams]
            return _side_by_side(width, titles, [Text("\n").join(answer) for answer in answers])

        with Live(console=self.console, refresh_per_second=FRAMES, transient=True, get_renderable=growing):
            for _ in _in_turn(streams):
                pass
        answers = [Text(printable(stream.text)) for stream in streams]
        footers = [Text(footer(stream), style="dim") for stream in streams]
        self.console.print(_side_by_side(width, titles, answers, footers))


def printable(text: str) -> str:
    """The text without what would steer the terminal."""
    return "".join(
        character for character in text if character in "\n\t" or unicodedata.category(character) != "Cc"
    )


def _side_by_side(width: int, *rows: Sequence[Text]) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0))
    for _ in rows[0]:
        table.add_column(width=width, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _in_turn(streams: Sequence[AnswerStream]) -> Iterator[None]:
    """Go on with each of the answers, a token at a time."""
    running = [iter(stream) for stream in streams]
    while running:
        running = [stream for stream in running if next(stream, None) is not None]
        yield
