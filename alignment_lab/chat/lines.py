"""Lines of a talk: typed at a terminal, with a history, or out of a pipe."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console

from ..runtime.errors import Interrupted
from ..runtime.files import cache_directory
from .commands import COMMANDS
from .interruption import ctrl_c, ignore

HISTORY_FILE, HISTORY_LENGTH = "chat_history", 1000  # in the cache; messages


def piped_lines(stream: TextIO) -> Iterator[str]:
    """The lines of a file or a pipe, each as soon as it is there. Bytes that are no text are replaced."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    while line := stream.readline():
        yield line


def typed_lines(prompt: str, console: Console) -> Iterator[str]:
    """Lines that are typed, until Ctrl-D. Raises KeyboardInterrupt for the second Ctrl-C in a row, and
    Interrupted for another signal.
    """
    with _history(), ctrl_c(ignore):
        interrupted = False
        while True:
            try:
                with ctrl_c(signal.default_int_handler):
                    line = input(_bold(prompt) if console.color_system else prompt)
            except EOFError:
                print()
                return
            except Interrupted:
                raise
            except KeyboardInterrupt:
                print()
                if interrupted:
                    raise
                interrupted = True
                console.print("Ctrl-C again ends the talk, as Ctrl-D does", style="dim")
                continue
            interrupted = False
            yield line


def _bold(prompt: str) -> str:
    """The prompt in bold; readline counts no character between 1 and 2."""
    return f"\001\033[1m\002{prompt}\001\033[0m\002"


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Arrow keys, the history of earlier talks, commands completed with Tab; nothing where there is no
    readline.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    file = cache_directory() / HISTORY_FILE
    readline.set_completer(_complete)
    readline.set_completer_delims("\n")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY_LENGTH)
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # for the user's eyes alone
            readline.write_history_file(file)


def _complete(text: str, state: int) -> str | None:
    found = [name for name in COMMANDS if name.startswith(text)] if text.startswith("/") else []
    return found[state] if state < len(found) else None
