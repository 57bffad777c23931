"""Whose answers a model's are compared with: a file's, the data's own, or those that another model writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import Row, prompt_messages
from ..runtime.errors import UserError
from .prompts import content_digest, prompt_digest

KEY = "eval.winrate.baseline"
PROMPT_COLUMNS = ("prompt", "messages", "instruction", "question")
ANSWER_COLUMNS = ("answer", "output", "response", "completion", "after")
SUFFIXES = (".json", ".jsonl")
LISTED = 60  # characters of a prompt that a sentence shows


def is_answer_file(name: str) -> bool:
    """Whether this baseline is a file of answers, and no model."""
    path = Path(name).expanduser()
    return path.suffix in SUFFIXES or path.is_file()


def read_answers(name: str) -> dict[str, str]:
    """The answer to each prompt, by the prompt's digest: of JSON Lines, or of a JSON array.

    Raises UserError where a row has no prompt or no answer, or two answers are to one prompt.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{KEY}={name}: no such file; give a run, a model, or a file of answers.")
    answers: dict[str, str] = {}
    for place, row in enumerate(_rows(name, path), start=1):
        prompt = next((row[column] for column in PROMPT_COLUMNS if row.get(column)), None)
        answer = next((row[column] for column in ANSWER_COLUMNS if isinstance(row.get(column), str)), None)
        if prompt is None or answer is None:
            lacks, columns = ("prompt", PROMPT_COLUMNS) if prompt is None else ("answer", ANSWER_COLUMNS)
            raise UserError(
                f"{KEY}={name}: row {place} has no {lacks}; give it one as {' or '.join(columns)}."
            )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        digest = content_digest(messages)
        if answers.setdefault(digest, answer) != answer:
            raise UserError(
                f"{KEY}={name}: row {place} answers a prompt a second time; leave one answer to each."
            )
    return answers


def _rows(name: str, path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        found = (
            json.loads(text)
            if text.lstrip()[:1] == "["
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{KEY}={name}: cannot be read as JSON ({error}); give JSON Lines, or an array."
        ) from None
    if not found or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{KEY}={name}: holds no rows; each is an object with a prompt and an answer.")
    return found


def own_answer(row: Row) -> str | None:
    """The data's own answer to a row's prompt: the last turn of its conversation, or its preferred answer;
    None where it is labeled a bad one.
    """
    if "completion" in row:
        return str(row["completion"][-1]["content"]) if row["label"] else None
    turns = row.get("chosen") or row.get("messages")
    return str(turns[-1]["content"]) if turns else None


def match(rows: Sequence[Row], answers: Mapping[str, str], name: str) -> list[str]:
    """The baseline's answer to each row's prompt. Raises UserError unless it has one to every prompt."""
    digests = [prompt_digest(row) for row in rows]
    missing = [row for row, digest in zip(rows, digests, strict=True) if digest not in answers]
    if missing:
        shown = str(prompt_messages(missing[0])[-1]["content"])[:LISTED]
        raise UserError(
            f"{KEY}={name}: has no answer to {len(missing)} of {len(rows)} prompts ({shown!r} for one): "
            "prompts are matched by their content; give answers to these, or choose the rows with data=..."
        )
    return [answers[digest] for digest in digests]


def own_answers(rows: Sequence[Row]) -> list[str]:
    """The data's own answer to each prompt. Raises UserError where a row has none."""
    found = [own_answer(row) for row in rows]
    missing = sum(answer is None for answer in found)
    if missing:
        raise UserError(
            f"{KEY}=null: the data have no good answer to {missing} of {len(rows)} prompts; name a run, a "
            "model, or a file of answers."
        )
    return [str(answer) for answer in found]
