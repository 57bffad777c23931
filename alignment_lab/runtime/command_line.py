"""The command that was typed, for messages that name the next one, or a setting as the user wrote it."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from .paths import CODE_ROOT

CONSOLE_COMMAND = "alignment-lab"  # as pyproject.toml installs it
SCRIPT = "train.py"


def typed_command() -> str:
    """`python train.py` or `alignment-lab`; in a child process, the one that runs this code."""
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    if name == CONSOLE_COMMAND:
        return CONSOLE_COMMAND
    return f"python {SCRIPT}" if name == SCRIPT or (CODE_ROOT / SCRIPT).exists() else CONSOLE_COMMAND


def typed_override(matches: Callable[[str], bool], default: str = "") -> str:
    """The override of the command line whose key matches, as the user typed it; of several the last."""
    return typed_word(lambda word: matches(word.lstrip("+~").partition("=")[0]), default)


def typed_word(matches: Callable[[str], bool], default: str = "") -> str:
    """The word of the command line that matches; of several the last."""
    return next((word for word in reversed(sys.argv[1:]) if matches(word)), default)


def path_argument(text: str) -> Path:
    """A path on a command line, for argparse; an empty one would be this directory, and is refused."""
    if not text.strip():
        raise ArgumentTypeError("is empty, as a shell leaves it where a variable is not set; give a path")
    return Path(text)
