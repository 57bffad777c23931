"""MT-Bench: answers of two turns in FastChat's files, and the scores that its judge gave them.

The judge is FastChat's own `gen_judgment`, run by the user on the folder that is written here: docs/guides.
Zheng et al. 2023, https://arxiv.org/abs/2306.05685.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from ...config.groups.harnesses import MtBench
from ...data.rows import Message
from ...runtime.errors import UserError
from ...runtime.files import json_digest
from ..intervals import Scores
from .answering import Answer
from .files import read_objects, to_jsonl
from .packages import mt_bench_data

# FastChat's `temperature_config`, and its temperature of every other category.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
OTHER_TEMPERATURE = 0.7
DATA = "mt_bench/data"  # `gen_judgment` is run in the folder above: it reads data/mt_bench
QUESTIONS_KEY, JUDGMENTS_KEY = "eval.mt_bench.questions", "eval.mt_bench.judgments"
FAILED = -1  # the score of an answer that the judge did not rate


class Question(TypedDict):
    """A line of FastChat's question.jsonl; other keys are kept as they are."""

    question_id: int
    category: str
    turns: list[str]


def load_questions(settings: MtBench) -> list[Question]:
    """The questions of the file that is set, or of the installed package.

    Raises UserError where a row is no question.
    """
    file = settings.questions or str(_package_data() / "mt_bench" / "question.jsonl")
    rows: list[Any] = read_objects(QUESTIONS_KEY, file, "question_id", "category", "turns")
    for number, row in enumerate(rows, 1):
        turns = row["turns"]
        if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
            raise UserError(f"{QUESTIONS_KEY}={file}: `turns` of row {number} must be a list of texts.")
    return rows[: settings.limit]


def _package_data() -> Path:
    folder = mt_bench_data()
    assert folder is not None, "`missing_packages` says so before"
    return folder


def answer_questions(
    questions: Sequence[Question], answer: Answer, settings: MtBench
) -> list[list[list[str]]]:
    """What the model says in each turn of each choice of each question.

    In its second turn it sees its own answer to the first. A choice's seed is its number, as FastChat's.
    """
    answers: list[list[list[str]]] = [[[] for _ in range(settings.choices)] for _ in questions]
    depth = max(len(question["turns"]) for question in questions)
    for turn, choice in ((turn, choice) for turn in range(depth) for choice in range(settings.choices)):
        by_temperature: dict[float, list[int]] = defaultdict(list)
        for index, question in enumerate(questions):
            if turn < len(question["turns"]):
                by_temperature[_temperature(question, settings)].append(index)
        for temperature, indices in by_temperature.items():
            chats = [_conversation(questions[index]["turns"], answers[index][choice]) for index in indices]
            said = answer(chats, max_new_tokens=settings.max_new_tokens, temperature=temperature, seed=choice)
            for index, text in zip(indices, said, strict=True):
                answers[index][choice].append(text)
    return answers


def _temperature(question: Question, settings: MtBench) -> float:
    if settings.temperature is not None:
        return settings.temperature
    return TEMPERATURES.get(question["category"], OTHER_TEMPERATURE)


def _conversation(turns: Sequence[str], said: Sequence[str]) -> list[Message]:
    """The user's turns with the model's answers so far, up to the turn that it has not answered."""
    messages: list[Message] = []
    for turn, answer in zip(turns, said, strict=False):
        messages += [Message(role="user", content=turn), Message(role="assistant", content=answer)]
    return [*messages, Message(role="user", content=turns[len(said)])]


def answer_files(
    model: str, questions: Sequence[Question], answers: Sequence[Sequence[Sequence[str]]]
) -> dict[str, str]:
    """The files that FastChat's `gen_judgment` reads, by their names under a folder.

    Reference answers and judge prompts are beside them where the package that has them is installed.
    """
    rows = []
    for question, choices in zip(questions, answers, strict=True):
        said = [{"index": index, "turns": list(turns)} for index, turns in enumerate(choices)]
        rows.append(
            {
                "question_id": question["question_id"],
                "answer_id": json_digest([model, question["question_id"], said])[:22],
                "model_id": model,
                "choices": said,
                "tstamp": time.time(),
            }
        )
    files = {
        f"{DATA}/mt_bench/question.jsonl": to_jsonl([dict(question) for question in questions]),
        f"{DATA}/mt_bench/model_answer/{model}.jsonl": to_jsonl(rows),
    }
    if folder := mt_bench_data():
        shared = [folder / "judge_prompts.jsonl", *(folder / "mt_bench" / "reference_answer").glob("*.jsonl")]
        for file in shared:
            files[f"{DATA}/{file.relative_to(folder)}"] = file.read_text(encoding="utf-8")
    return files


def known_categories(settings: MtBench) -> dict[int, str]:
    """The category of each question, where the questions are at hand."""
    if not settings.questions and mt_bench_data() is None:
        return {}
    return {question["question_id"]: question["category"] for question in load_questions(settings)}


class Judged(TypedDict):
    """What a judge said of one model."""

    scores: dict[str, Scores]
    table: list[dict[str, Any]]  # a row for each category and turn
    judges: list[str]
    failed: int  # judgments without a verdict, which are left out as FastChat leaves them out


def read_judgments(model: str, settings: MtBench, categories: dict[int, str]) -> Judged:
    """The judge's scores of this model, from `..._single.jsonl` or `..._pair.jsonl` of `gen_judgment`.

    The mean is that of FastChat's `show_result`; of pairs, a game is won that is won in both orders, and any
    other is a tie that counts half. The turns of one question are one draw. Raises UserError where the file
    has none of this model.
    """
    file = settings.judgments or ""
    rows = read_objects(JUDGMENTS_KEY, file, "question_id", "turn")
    pairs = "g1_winner" in rows[0]
    found = [verdict for row in rows if (verdict := (_pair if pairs else _single)(row, model, file))]
    if not found:
        named = sorted(
            {str(row.get(name)) for row in rows for name in ("model", "model_1", "model_2") if name in row}
        )
        raise UserError(
            f"{JUDGMENTS_KEY}={file}: it judges {', '.join(named)}, and not {model}; "
            "give the judgments of this model's answers."
        )
    rated = [verdict for verdict in found if verdict["score"] is not None]
    if not rated:
        raise UserError(f"{JUDGMENTS_KEY}={file}: no answer of {model} has a verdict; judge again.")
    name = "mt_bench/win_rate" if pairs else "mt_bench/score"
    groups = {name: rated}
    for turn in sorted({verdict["turn"] for verdict in rated}):
        groups[f"{name}/turn_{turn}"] = [verdict for verdict in rated if verdict["turn"] == turn]
    return {
        "scores": {group: _scores(verdicts, share=pairs) for group, verdicts in groups.items()},
        "table": _by_category(rated, categories),
        "judges": sorted({verdict["judge"] for verdict in found}),
        "failed": len(found) - len(rated),
    }


def _single(row: dict[str, Any], model: str, file: str) -> dict[str, Any] | None:
    """One rating from 1 to 10, of this model; None for another's."""
    if row.get("model") != model:
        return None
    score = row.get("score")
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise UserError(f"{JUDGMENTS_KEY}={file}: question {row['question_id']} has no number as `score`.")
    return {**_common(row), "score": None if score == FAILED else float(score)}


def _pair(row: dict[str, Any], model: str, file: str) -> dict[str, Any] | None:
    """1 for a game that this model won, 0 for one that it lost, 0.5 for a tie; None for another's game."""
    sides = [side for side in ("model_1", "model_2") if row.get(side) == model]
    if len(sides) != 1:
        return None
    winners = {row.get("g1_winner"), row.get("g2_winner")}
    if "error" in winners or None in winners:
        return {**_common(row), "score": None}
    is_tie = len(winners) > 1 or "tie" in winners
    return {**_common(row), "score": 0.5 if is_tie else float(winners == set(sides))}


def _common(row: dict[str, Any]) -> dict[str, Any]:
    judge = row.get("judge", "an unnamed judge")
    return {
        "question_id": row["question_id"],
        "turn": row["turn"],
        "judge": str(judge[0] if isinstance(judge, list) else judge),
    }


def _scores(verdicts: Sequence[dict[str, Any]], *, share: bool) -> Scores:
    values = [verdict["score"] for verdict in verdicts]
    return Scores(values, share=share, prompts=[str(verdict["question_id"]) for verdict in verdicts])


def _by_category(verdicts: Sequence[dict[str, Any]], categories: dict[int, str]) -> list[dict[str, Any]]:
    """The mean of each category, by turn and of both."""
    table = []
    for category in dict.fromkeys(categories.get(verdict["question_id"], "other") for verdict in verdicts):
        of_category = [
            verdict for verdict in verdicts if categories.get(verdict["question_id"], "other") == category
        ]
        row: dict[str, Any] = {"category": category, "judgments": len(of_category)}
        for turn in sorted({verdict["turn"] for verdict in verdicts}):
            values = [verdict["score"] for verdict in of_category if verdict["turn"] == turn]
            row[f"turn {turn}"] = sum(values) / len(values) if values else None
        row["mean"] = sum(verdict["score"] for verdict in of_category) / len(of_category)
        table.append(row)
    return table
