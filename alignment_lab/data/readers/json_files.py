"""JSON: a value to a line, one array of rows, or values one after the other. Nothing is held but a row.

Each row is read by itself, so that no row decides the types of another.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from ..reasons import BadRow, Reason
from ..rows import RawRow, Unit
from .kinds import BOM, open_bytes, read_head, shown
from .places import DataFile, Skip, Span

CHUNK = 2**20  # characters that are read at a time
SHOWN = 2000  # characters of a row that could not be read
NOT_UTF8 = "is not UTF-8; save the file as UTF-8"
ROW_SHAPE = 'a row is an object of columns, as {"messages": [...]}'
DIGITS = bytes(ord("0") if 48 <= byte < 58 else byte for byte in range(256))
HUGE = b"0" * 19  # an integer that may not fit 64 bits, which orjson would round
SPACE = re.compile(r"\s*")
SURROGATE = re.compile("[\ud800-\udfff]")
DECODER = json.JSONDecoder()


def read_json(file: DataFile, span: Span | None, skip: Skip) -> Iterator[RawRow]:
    """The rows of a file or of a stretch of its lines. Raises DataError where the file goes on in no row."""
    if span or _is_lines(file):
        return _read_lines(file, span, skip)
    return _read_values(file, skip)


def split_json(file: DataFile, count: int) -> list[Span]:
    """A file of lines in about `count` stretches; any other as one."""
    size = file.path.stat().st_size
    if file.compression or count < 2 or not _is_lines(file):
        return [Span(file)]
    spans: list[Span] = []
    start, line = 0, 1
    with open_bytes(file.path, None) as stream:
        for number in range(1, count + 1):
            if start >= size:
                break
            lines = _count_lines(stream, start, max(start, size * number // count))
            end = stream.tell()
            spans.append(Span(file, start, end, line))
            start, line = end, line + lines
    return spans


def _count_lines(stream: IO[bytes], start: int, at_least: int) -> int:
    """Newlines from `start` to the end of the line that holds byte `at_least`, where the stream then is."""
    stream.seek(start)
    lines, left = 0, at_least - start
    while left > 0 and (block := stream.read(min(CHUNK, left))):
        lines, left = lines + block.count(b"\n"), left - len(block)
    return lines + stream.readline().endswith(b"\n")


def parse(text: bytes) -> tuple[Any, BadRow | None]:
    """(the value, None), or (the text, why it is none). A half of a surrogate pair becomes U+FFFD."""
    import orjson

    if HUGE not in text.translate(DIGITS):
        try:
            return orjson.loads(text), None
        except orjson.JSONDecodeError:
            pass  # NaN and halves of surrogate pairs are JSON to Python; and its errors say more
    try:
        return _whole(DECODER.decode(text.decode())), None
    except UnicodeDecodeError:
        problem = NOT_UTF8
    except json.JSONDecodeError as error:
        problem = _describe(error)
    except (ValueError, RecursionError) as error:  # an integer of more than 4300 digits; 1000 brackets
        problem = "is nested too deeply" if isinstance(error, RecursionError) else "has a number too large"
    return as_text(text), BadRow(Reason.unreadable, problem)


def as_text(text: bytes) -> str:
    """What stood where a row could not be read, as far as it is shown."""
    return text[:SHOWN].decode("utf-8", "replace").rstrip()


def as_row(value: Any, file: str, number: int, unit: Unit = "line") -> RawRow:
    """A value in a row's place."""
    if isinstance(value, dict):
        return RawRow(value, file, number, unit=unit)
    what = "null" if value is None else NAMES.get(type(value), "a number")
    return RawRow(value, file, number, BadRow(Reason.not_a_row, f"is {what}; {ROW_SHAPE}"), unit)


NAMES = {list: "a list", str: "text", bool: "true or false"}


def _describe(error: json.JSONDecodeError) -> str:
    rest = error.doc[error.pos :].strip()
    if not rest or error.msg.startswith(("Unterminated", "Invalid control")):
        return "is cut: it ends before its value does"
    if error.msg == "Extra data":
        return "holds more than one value"
    return f"is no JSON ({_why(error)})"


def _why(error: json.JSONDecodeError) -> str:
    if error.doc[error.pos : error.pos + 1] == "'":
        return "names and texts are in single quotes, as Python shows them: write rows by json.dumps"
    return error.msg


def _whole(value: Any) -> Any:
    """The value with U+FFFD for each half of a surrogate pair, which no text can hold."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value


def _read_lines(file: DataFile, span: Span | None, skip: Skip) -> Iterator[RawRow]:
    span = span or Span(file)
    with open_bytes(file.path, file.compression) as stream:
        if span.start:
            stream.seek(span.start)
        position = span.start
        for number, line in enumerate(stream, start=span.line):
            if span.end is not None and position >= span.end:
                return
            position += len(line)
            text = line.removeprefix(BOM) if number == 1 else line
            if text.isspace() or not text or skip.one():
                continue
            value, defect = parse(text)
            yield RawRow(value, file.name, number, defect) if defect else as_row(value, file.name, number)


# ---- arrays, and values over several lines


def _is_lines(file: DataFile) -> bool:
    """Whether each line is a value of its own, told from the beginning of the file. Raises DataError."""
    head = read_head(file.path, file.compression).removeprefix(BOM)
    lines = [line for line in head.split(b"\n") if line.strip()]
    if len(lines) > 1 and not head.endswith(b"\n"):
        lines.pop()  # it may go on behind the head
    if not lines:
        return True
    values = [parse(line.decode("utf-8", "replace").encode()) for line in lines[:50]]
    first, defect = values[0]
    if defect is None:
        return not (isinstance(first, list) and len(lines) == 1)
    if lines[0].lstrip().startswith(b"["):
        return False
    objects = sum(isinstance(value, dict) for value, _ in values)
    if lines[0].lstrip().startswith(b"{") and 2 * objects < len(values) - 1:
        return False
    if not objects and not lines[0].lstrip().startswith(b"{"):
        raise file.error(f"holds no JSON: it begins with {shown(head)}; give it the ending of what it holds.")
    return True


class _Text:
    """A text that is read piece by piece; `at` is the next character of `buffer`."""

    def __init__(self, stream: IO[bytes], file: DataFile) -> None:
        self.stream, self.file = stream, file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def grow(self) -> None:
        """Read as much again as is held, so that a long value is not parsed from its beginning too often."""
        block = self.stream.read(max(CHUNK, len(self.buffer) - self.at))
        try:
            more = self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = self.line + self.buffer.count("\n", self.at) + block.count(b"\n", 0, error.start)
            raise self.file.error(
                f"is not UTF-8 (line {line}); save it as UTF-8: iconv -f LATIN1 -t UTF-8."
            ) from error
        self.buffer, self.at, self.ended = self.buffer[self.at :] + more, 0, not block

    def move(self, to: int) -> None:
        self.line += self.buffer.count("\n", self.at, to)
        self.at = to

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = SPACE.match(self.buffer, self.at)
            self.move(match.end() if match else self.at)
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self.grow()

    def value(self, number: int) -> Any:
        """The next value. Raises DataError, naming its row and line, where there is none."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
            except RecursionError as error:
                raise self.file.error(f"is nested too deeply in row {number} (line {self.line}).") from error
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated") or len(self.buffer) - error.pos < CHUNK
                if may_go_on and not self.ended:
                    self.grow()
                    continue
                raise self.fault(error, number) from error
            if end < len(self.buffer) or self.ended:
                source = self.buffer[self.at : end]
                self.move(end)
                return _whole(value) if "\\ud" in source or "\\uD" in source else value
            self.grow()

    def fault(self, error: json.JSONDecodeError, number: int) -> Exception:
        line = self.line + self.buffer.count("\n", self.at, error.pos)
        if not self.buffer[error.pos :].strip() or error.msg.startswith("Unterminated"):
            return self.file.error(f"cannot be read: it is cut in row {number} (line {line}); fetch it anew.")
        return self.file.error(
            f"cannot be read: row {number} is no JSON at line {line} ({_why(error)}); correct it there."
        )


def _read_values(file: DataFile, skip: Skip) -> Iterator[RawRow]:
    """The items of one array, or values one after the other."""
    with open_bytes(file.path, file.compression) as stream:
        text = _Text(stream, file)
        is_array = text.peek() == "["
        if is_array:
            text.move(text.at + 1)
        for number in _rows_until_the_end(text, is_array):
            value = text.value(number)
            if not skip.one():
                yield as_row(value, file.name, number, "row")


def _rows_until_the_end(text: _Text, is_array: bool) -> Iterator[int]:
    """The numbers of the values that follow; each is to be read before the next is asked for."""
    number = 0
    while (character := text.peek()) and character != "]":
        if number and is_array:
            if character != ",":
                raise text.file.error(
                    f"cannot be read: no comma follows row {number} (line {text.line}); correct it there."
                )
            text.move(text.at + 1)
            text.peek()
        number += 1
        yield number
    if is_array and not character:
        raise text.file.error(
            f"cannot be read: it is cut after row {number} (line {text.line}), as its array has no end; "
            "fetch it anew."
        )
