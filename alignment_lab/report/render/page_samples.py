"""The answers of several runs to the same prompts, for the comparison's page, clipped to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..study.row_scores import prompt_key
from ..study.runs import LoggedRow, RunRecord
from .formatting import clip, format_prompt
from .template import ANSWER_LIMIT

MAX_PROMPTS = 40
MAX_CHARACTERS = 1_200_000  # of all answers on a page


def page_prompts(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The first prompts that any run answered, each with the answers of every run before and after."""
    prompts: dict[str, LoggedRow] = {}  # by their key, the first sample of each
    answers: dict[str, dict[int, LoggedRow]] = {}  # by key and the index of the run
    for index, record in enumerate(records):
        for row in record.samples:
            key = prompt_key(row)
            if key in prompts or len(prompts) < MAX_PROMPTS:
                prompts.setdefault(key, row)
                answers.setdefault(key, {}).setdefault(index, row)  # the first of repeated prompts
    count = sum(map(len, answers.values()))
    limit = max(120, min(ANSWER_LIMIT, MAX_CHARACTERS // max(1, count)))
    return [
        _prompt(row) | {"answers": [_answer(index, answer, limit) for index, answer in answers[key].items()]}
        for key, row in prompts.items()
    ]


def _prompt(row: LoggedRow) -> dict[str, Any]:
    expected = row.get("expected")
    return {
        "prompt": format_prompt(row.get("prompt"), ANSWER_LIMIT),
        "expected": None if expected is None else clip(expected, ANSWER_LIMIT),
    }


def _answer(index: int, row: LoggedRow, limit: int) -> list[Any]:
    """[run, before, after, correct before, correct after]; None where it was not generated or is unknown."""
    before, after = (
        None if (answer := row.get(when)) is None else clip(answer, limit) for when in ("before", "after")
    )
    return [index, before, after, row.get("before_correct"), row.get("after_correct")]
