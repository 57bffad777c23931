"""Text that comes in pieces, broken between words where a line of the terminal ends."""

from __future__ import annotations

from rich.cells import cell_len

TAB = 8  # characters between two tab stops of a terminal


class WordWrap:
    """A word is held back until it is whole; wide characters, of scripts without spaces, are words."""

    def __init__(self, width: int) -> None:
        self.width, self.column, self.word = width, 0, ""

    def feed(self, text: str) -> str:
        """What is to be printed now."""
        return "".join(map(self._take, text))

    def flush(self) -> str:
        """The last word."""
        word, self.word = self.word, ""
        size = cell_len(word)
        breaks = self.column > 0 and self.column + size > self.width
        self.column = size if breaks else self.column + size
        return f"\n{word}" if breaks else word

    def _take(self, character: str) -> str:
        if not character.isspace():
            wide, before = cell_len(character) > 1, ""
            if wide or cell_len(self.word) >= self.width:
                before = self.flush()
            self.word += character
            return before + self.flush() if wide else before
        before = self.flush()
        if character == "\n":
            self.column = 0
        elif self.column >= self.width:
            return before  # the line ends here anyway
        else:
            self.column += TAB - self.column % TAB if character == "\t" else 1
        return before + character
