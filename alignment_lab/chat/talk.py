"""The talk itself: what was asked and answered, by one model or two, and how it becomes rows of data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.rows import Message
from ..runtime.errors import UserError
from ..runtime.files import write_atomic
from ..runtime.folders import refuse_new_at_root


@dataclass(frozen=True)
class Answer:
    """What a model answered."""

    text: str
    finished: bool  # it ended by itself: neither stopped by hand nor cut at max_new_tokens


@dataclass(frozen=True)
class Turn:
    """One message of the user, and the answer of each model."""

    question: str
    answers: Sequence[Answer]


@dataclass
class Talk:
    """What was said; each of several models goes on from its own answers."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def prompt(self, model: int, question: str) -> list[Message]:
        """What the model with this index is given to answer `question`."""
        return [*self._messages(model), {"role": "user", "content": question}]

    def row(self, model: int, name: str) -> dict[str, Any]:
        """The talk with one model as a row in the conversational format.

        An answer that did not end by itself has weight 0: no model is to learn to stop there.
        """
        messages: list[dict[str, Any]] = [dict(message) for message in self._messages(model)]
        answers = [message for message in messages if message["role"] == "assistant"]
        for message, turn in zip(answers, self.turns, strict=True):
            if not turn.answers[model].finished:
                message["weight"] = 0
        return {"messages": messages, "model": name}

    def _messages(self, model: int) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answers[model].text})
        return messages


class SavedTalks:
    """The files that were saved to, each with its talks: one that is saved again is replaced there."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[int, tuple[Talk, list[dict[str, Any]]]]] = {}

    def save(self, talk: Talk, names: Sequence[str], path: Path) -> int:
        """Write the talk, a row for each model; gives how many rows the file has. Raises UserError."""
        file = path.expanduser().absolute()
        if not talk.turns:
            raise UserError(f"/save {path}: nothing was said yet; ask something first.")
        if file not in self._files and file.exists():
            raise UserError(f"/save {path}: is there already, and would be written over; give another file.")
        refuse_new_at_root(file.parent, f"/save {path}")
        rows = [talk.row(index, name) for index, name in enumerate(names)]
        talks = {**self._files.get(file, {}), id(talk): (talk, rows)}  # the talk is kept: so is its id
        lines = [json.dumps(row, ensure_ascii=False) for _, rows in talks.values() for row in rows]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise UserError(
                f"/save {path}: could not be written ({error.strerror}); give another file."
            ) from None
        self._files[file] = talks
        return len(lines)
