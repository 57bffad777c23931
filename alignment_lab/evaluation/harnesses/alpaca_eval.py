"""AlpacaEval: answers in the file that alpaca_eval judges, and the preferences that its judge gave.

The judge is the package's own, run by the user: docs/guides. Dubois et al. 2024, https://arxiv.org/abs/2404.04475.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

from ...config.groups.harnesses import AlpacaEval
from ...data.rows import Message
from ...runtime.errors import UserError
from ..intervals import Scores
from ..prompts import content_digest
from ..winrate import Preferences, length_controlled
from .answering import Answer
from .files import read_objects, to_json

QUESTIONS_KEY, ANNOTATIONS_KEY = "eval.alpaca_eval.questions", "eval.alpaca_eval.annotations"
NO_QUESTIONS = (
    f"{QUESTIONS_KEY}=null: give the file of instructions; AlpacaEval 2's 805 are "
    "alpaca_eval_gpt4_baseline.json of the Hub's data set tatsu-lab/alpaca_eval."
)
KEPT = ("dataset", "datasplit")  # of an instruction: where it comes from


def load_instructions(settings: AlpacaEval) -> list[dict[str, Any]]:
    """The rows of the file that is set.

    Raises UserError where one has no instruction, or two have the same.
    """
    if not settings.questions:
        raise UserError(NO_QUESTIONS)
    rows = read_objects(QUESTIONS_KEY, settings.questions, "instruction")[: settings.limit]
    instructions = [row["instruction"] for row in rows]
    repeated = len(instructions) - len(set(map(str, instructions)))
    if repeated:
        raise UserError(
            f"{QUESTIONS_KEY}={settings.questions}: {repeated} of its instructions repeat another, and "
            "alpaca_eval finds an answer by its instruction; leave them out."
        )
    return rows


def answer_instructions(rows: Sequence[dict[str, Any]], answer: Answer, settings: AlpacaEval) -> list[str]:
    """The model's answer to each instruction; an `input` follows it, as in Alpaca's data."""
    chats = [
        [Message(role="user", content="\n\n".join(filter(None, (row["instruction"], row.get("input")))))]
        for row in rows
    ]
    return answer(chats, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=0)


def answer_files(model: str, rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> dict[str, str]:
    """The file that `alpaca_eval --model_outputs` reads, by its name."""
    outputs = [
        {
            **{key: row[key] for key in KEPT if key in row},
            "instruction": row["instruction"],
            "output": text,
            "generator": model,
        }
        for row, text in zip(rows, answers, strict=True)
    ]
    return {f"alpaca_eval/{model}.json": to_json(outputs)}


class Annotated(TypedDict):
    """What a judge said of one model."""

    scores: dict[str, Scores]
    facts: dict[str, Any]  # baseline, judges, wins and ties, the lab's own length control


def read_annotations(model: str, settings: AlpacaEval) -> Annotated:
    """The preferences for this model, from alpaca_eval's annotations.json.

    A preference of 1 is the baseline's (`generator_1`), 2 the model's; 1.5, or 0 in older files, is a tie.
    Win rate and length-controlled win rate are the means that alpaca_eval states, in shares: the second only
    where it wrote `glm_preference`. Raises UserError where the file has none of this model.
    """
    file = settings.annotations or ""
    rows = read_objects(ANNOTATIONS_KEY, file, "instruction", "generator_1", "generator_2", "preference")
    own = [row for row in rows if row["generator_2"] == model]
    if not own:
        named = sorted({str(row["generator_2"]) for row in rows})
        raise UserError(
            f"{ANNOTATIONS_KEY}={file}: it judges {', '.join(named)}, and not {model}; "
            "give the annotations of this model's answers."
        )
    baselines = sorted({str(row["generator_1"]) for row in own})
    if len(baselines) > 1:
        raise UserError(
            f"{ANNOTATIONS_KEY}={file}: it compares {model} to {' and '.join(baselines)}; "
            "give a file with one baseline."
        )
    judged = [(row, share) for row in own if (share := _share(row["preference"])) is not None]
    if not judged:
        raise UserError(f"{ANNOTATIONS_KEY}={file}: no answer of {model} has a preference; judge again.")
    return {
        "scores": _scores(judged),
        "facts": {
            "baseline": baselines[0],
            "judges": sorted({str(row.get("annotator", "unnamed")) for row in own}),
            "wins": sum(share > 0.5 for _, share in judged),
            "losses": sum(share < 0.5 for _, share in judged),
            "ties": sum(share == 0.5 for _, share in judged),
            "without a preference": len(own) - len(judged),
            "at equal lengths": _at_equal_lengths(judged),
        },
    }


def _at_equal_lengths(judged: Sequence[tuple[dict[str, Any], float]]) -> dict[str, Any] | None:
    """The win rate by the lab's length control, which needs no difficulties of prompts from the Hub."""
    if any(not isinstance(row.get(f"output_{side}"), str) for row, _ in judged for side in (1, 2)):
        return None
    rows = [row for row, _ in judged]
    found = length_controlled(
        Preferences(
            values=[share for _, share in judged],
            candidate_lengths=[len(row["output_2"]) for row in rows],
            baseline_lengths=[len(row["output_1"]) for row in rows],
            prompts=[content_digest(row["instruction"]) for row in rows],
        )
    )
    return {"value": found.value, "ci95": list(found.ci95) if found.ci95 else None, "n": len(judged)}


def _share(preference: Any) -> float | None:
    """How far a preference is the model's, 0 to 1; None for one that is none."""
    if not isinstance(preference, int | float) or not math.isfinite(preference):
        return None
    if preference == 0:
        return 0.5
    return preference - 1 if 1 <= preference <= 2 else None


def _scores(judged: Sequence[tuple[dict[str, Any], float]]) -> dict[str, Scores]:
    prompts = [content_digest(row["instruction"]) for row, _ in judged]
    scores = {"alpaca_eval/win_rate": Scores([share for _, share in judged], share=True, prompts=prompts)}
    controlled = [row.get("glm_preference") for row, _ in judged]
    if all(isinstance(value, int | float) for value in controlled):
        values = [float(value) for value in controlled if value is not None]
        scores["alpaca_eval/length_controlled_win_rate"] = Scores(values, share=True, prompts=prompts)
    return scores
