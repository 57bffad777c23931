"""Pairs that are told from scores or votes: rows of several answers as rows of two."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ..reasons import BadRow, Reason
from ..rows import Row
from .values import describe_type, is_given, parse_json, read_label, read_number, read_text

SCORE_KEYS = ("overall_score", "score", "fine-grained_score", "rating")
CHOICE_COLUMNS = ("history", "human_ref_A", "human_ref_B", "labels")
VOTES = {  # the column of a vote, and those of the first and the second answer
    "overall_preference": ("response1", "response2"),  # HelpSteer3
    "preference_strength": ("response_1", "response_2"),  # HelpSteer2
}


def from_choice(row: Row) -> Row:
    """SHP: `history`, `human_ref_A`, `human_ref_B`, and `labels`, which is 1 where A was preferred."""
    is_first = read_label(row, "labels")
    chosen, rejected = ("human_ref_A", "human_ref_B") if is_first else ("human_ref_B", "human_ref_A")
    pair = _pair_of(row, chosen, rejected)
    pair["prompt"] = [{"role": "user", "content": _read_given(row, "history")}]
    del pair["history"]
    return pair


def from_vote(row: Row) -> Row:
    """HelpSteer: two answers to a `prompt` or a `context`, and a vote: below 0 for the first answer."""
    vote = vote_column(row)
    strength = read_number(row.get(vote), f"`{vote}`")
    if not strength:
        raise BadRow(Reason.no_preference, f"`{vote}` prefers neither answer")
    first, second = VOTES[vote]
    pair = _pair_of(row, first, second) if strength < 0 else _pair_of(row, second, first)
    return pair if row.get("context") is None else {**pair, "prompt": row["context"]}


def vote_column(row: Row) -> str:
    """The column of the vote; the first that there might be where the row has none."""
    return next((column for column in VOTES if row.get(column) is not None), next(iter(VOTES)))


def _pair_of(row: Row, chosen: str, rejected: str) -> Row:
    return {**row, "chosen": _read_given(row, chosen), "rejected": _read_given(row, rejected)}


def _read_given(row: Row, column: str) -> str:
    text = read_text(row, column)
    if not text or text.isspace():
        raise BadRow(Reason.empty, f"`{column}` is empty")
    return text


def from_scores(choose: str, seed: int) -> Callable[[Row], Row]:
    """UltraFeedback: the best of several scored `completions` against the worst, or against a random one of
    those that are worse. The first of equals is taken. `seed`: of the random choice, with the row's prompt.
    """

    def convert(row: Row) -> Row:
        scored = [_read_scored(item) for item in _read_completions(row)]
        if len(scored) < 2:
            raise BadRow(Reason.no_preference, "`completions` has fewer than two answers")
        best = max(score for score, _ in scored)
        worse = [(score, text) for score, text in scored if score < best]
        if not worse:
            raise BadRow(Reason.no_preference, "`completions` are scored alike")
        chosen = next(text for score, text in scored if score == best)
        if choose == "random":
            prompt = row.get("instruction") or row.get("prompt")
            rejected = random.Random(f"{seed} {prompt} {chosen}").choice(worse)[1]
        else:
            rejected = min(worse, key=lambda item: item[0])[1]
        return {**row, "chosen": chosen, "rejected": rejected}

    return convert


def _read_completions(row: Row) -> list[Any]:
    completions = parse_json(row.get("completions"))
    if not isinstance(completions, list):
        raise BadRow(
            Reason.not_messages, f"`completions` is no list of answers but {describe_type(completions)}"
        )
    return completions


def _read_scored(item: Any) -> tuple[float, str]:
    """(score, answer) of one completion."""
    if not isinstance(item, dict) or not is_given(item.get("response")):
        raise BadRow(Reason.no_content, "`completions` has an answer without `response`")
    key = next((key for key in SCORE_KEYS if item.get(key) is not None), None)
    if key is None:
        raise BadRow(
            Reason.missing_column, f"`completions` has an answer without a score ({', '.join(SCORE_KEYS)})"
        )
    return read_number(item[key], f"`{key}` of `completions`"), read_text(item, "response")
