"""Standard output and standard error that cannot end a run: whoever read them may have gone.

`| head`, a killed `tee`, a pager that was quit, a closed terminal or a full disk make a write fail. What is
printed then goes nowhere, and the other stream says so once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

NAMES = {1: "stdout", 2: "stderr"}
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors after which a later write may succeed
_lost: dict[str, str] = {}  # stream -> why what was written to it went nowhere


def keep_output_writable() -> None:
    """Replace sys.stdout and sys.stderr, where they are the process's own: writes to them never fail.

    Also opens descriptors 0 to 2 where they are closed: the next file that is opened would be written to by
    whatever prints. A character that the stream's encoding lacks is replaced.
    """
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            _open_if_closed(descriptor)
    sys.stdout, sys.stderr = _writable(sys.stdout, 1), _writable(sys.stderr, 2)


def lost_output() -> dict[str, str]:
    """The streams of this process that nobody reads any more, and why."""
    return dict(_lost)


def _open_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        os.set_inheritable(descriptor, True)


def _writable(stream: TextIO | None, descriptor: int) -> Any:
    file = UnfailingFile(descriptor)
    if stream is None:  # its descriptor was closed when the interpreter started
        return io.TextIOWrapper(io.BufferedWriter(file), encoding="utf-8", errors="replace")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # `python -u` has no buffer
    # what a notebook or a test put there is theirs
    if not isinstance(raw, io.FileIO) or isinstance(raw, UnfailingFile) or raw.fileno() != descriptor:
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        file if raw is buffer else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="replace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


class UnfailingFile(io.FileIO):
    """A descriptor whose writes succeed, whatever became of them."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: Any) -> int:
        """Write all of the data; what cannot be written counts as written."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # the descriptor does not wait for its reader: wait here
                    select.select([], [self.fileno()], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self._lose(error)
        return size

    def _lose(self, error: OSError) -> None:
        name = NAMES[self.fileno()]
        if error.errno not in PASSING:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())  # for libraries that write to it themselves, and for children
                os.close(null)
        if name in _lost:
            return
        _lost[name] = os.strerror(error.errno or 0)
        other = sys.stderr if name == "stdout" else sys.stdout
        with contextlib.suppress(Exception):
            message = "what is printed there from here on is lost, and nothing else is"
            print(f"{name}: {_lost[name]}: {message}", file=other, flush=True)


@contextlib.contextmanager
def silenced_libraries() -> Iterator[None]:
    """Hide the libraries' warnings: what is wrong with a model is a UserError."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
