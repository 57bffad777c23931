"""Begins a talk: finds and loads the models, says what they are, and takes lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext

from rich.console import Console

from . import screen
from .interruption import without_echo
from .lines import piped_lines, typed_lines
from .session import Session
from .settings import CommandLine
from .speaker import Speaker, load_speakers

PROMPT = "> "


def talk(words: CommandLine) -> None:
    """Talk until the lines end. Raises UserError; KeyboardInterrupt where Ctrl-C ended it."""
    console = Console(soft_wrap=True, highlight=False)
    interactive = sys.stdin.isatty() and console.is_terminal
    with without_echo() if interactive else nullcontext():
        speakers = load_speakers(words, Console(stderr=True) if interactive else None)
    system = words.start.system or _shared_system(speakers)
    place = screen.Terminal(console) if interactive else screen.Pipe()
    session = Session(speakers, words.chat, system, place, interactive=interactive)
    if interactive:
        place.tell("\n".join(_greeting(session)))
    session.run(typed_lines(PROMPT, console) if interactive else piped_lines(sys.stdin))


def _shared_system(speakers: list[Speaker]) -> str | None:
    """The system prompt of the runs' own rows; none where the models differ in it."""
    prompts = {speaker.system for speaker in speakers}
    return prompts.pop() if len(prompts) == 1 else None


def _greeting(session: Session) -> Iterator[str]:
    yield from (f"{speaker.name}: {speaker.description}" for speaker in session.speakers)
    if session.talk.system:
        yield f"system: {session.talk.system}"
    yield f"{session.settings}; /help says what else there is, Ctrl-D ends"
