"""What a line that begins with a slash does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.validation import did_you_mean
from ..runtime.errors import UserError
from . import settings
from .talk import Talk

if TYPE_CHECKING:
    from .session import Session

Command = Callable[["Session", str], str | None]  # (session, what follows the name) -> what is told


def run(session: Session, line: str) -> str | None:
    """Carry out the command in this line; gives what is to be told. Raises UserError."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        near = did_you_mean(name, list(COMMANDS)) or f"; there are {', '.join(COMMANDS)}."
        raise UserError(
            f"{name}: no such command{near} A message that begins with a slash is written with two."
        )
    return COMMANDS[name](session, argument.strip())


def _help(session: Session, argument: str) -> str:
    width = max(map(len, USAGE))
    return "\n".join(f"{usage:<{width}}  {meaning}" for usage, meaning in USAGE.items())


def _system(session: Session, argument: str) -> str:
    if argument:
        session.talk.system = None if argument == NO_SYSTEM else argument
    return f"system: {session.talk.system or 'none of its own; the template may have one'}"


def _reset(session: Session, argument: str) -> str:
    session.talk = Talk(session.talk.system)
    return "a new talk"


def _undo(session: Session, argument: str) -> str:
    if not session.talk.turns:
        raise UserError("/undo: nothing was said yet.")
    question = session.talk.turns.pop().question
    return f"taken back: {question}"


def _save(session: Session, argument: str) -> str:
    if not argument:
        raise UserError("/save: say where to: /save talk.jsonl")
    names = [speaker.name for speaker in session.speakers]
    count = session.saved.save(session.talk, names, Path(argument))
    return f"{argument}: {count} row{'s' if count > 1 else ''}; data=local data.path={argument} reads it"


def _set(session: Session, argument: str) -> str:
    session.settings = settings.change(session.settings, argument.split())
    return str(session.settings)


def _quit(session: Session, argument: str) -> None:
    session.is_over = True


NO_SYSTEM = "none"
COMMANDS: dict[str, Command] = {
    "/help": _help,
    "/system": _system,
    "/set": _set,
    "/undo": _undo,
    "/reset": _reset,
    "/save": _save,
    "/quit": _quit,
}
USAGE = {
    "/help": "this list",
    "/system [TEXT]": f"set the system prompt of the talk, or show it; {NO_SYSTEM} takes it away",
    "/set [KEY=VALUE ...]": f"change or show how answers are drawn: {', '.join(settings.CHAT_KEYS)}",
    "/undo": "take back the last message and its answer",
    "/reset": "begin a new talk",
    "/save FILE": "write the talk as JSONL, a row for each model",
    "/quit": "end; so does Ctrl-D. Ctrl-C stops an answer",
    '"""': "begins a message of several lines, and ends it",
}
