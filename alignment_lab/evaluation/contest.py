"""Who takes part in a comparison of answers, and whether it may take place: before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import Experiment
from ..config.validation import require
from ..runtime.errors import UserError
from .baseline import KEY, is_answer_file, match, own_answers, read_answers
from .candidates import Candidate, find_candidate
from .judges.choice import find_judge, made_of, read_rubric, require_impartial
from .rows import HeldoutRows

JUDGED_PROMPTS = 2  # the fewest that an interval can be had from


def find_baseline(spec: Experiment) -> Candidate | None:
    """The model whose answers are compared with; None for a file, or for the data's own answers.

    Raises UserError where it is none that writes answers.
    """
    name = spec.eval.winrate.baseline
    if name is None or is_answer_file(name):
        return None
    found = find_candidate(spec, name, KEY)
    if found.is_reward_model:
        raise UserError(f"{KEY}={name}: is a reward model, which writes no answers; give a language model.")
    return found


def check_winrate(spec: Experiment, candidates: Sequence[Candidate]) -> None:
    """Raise UserError where the judge, the baseline or the rubric is not there, or the judge takes part."""
    count = spec.eval.generations
    remedy = (
        f"eval.measures=winrate compares answers to held-out prompts; set it to {JUDGED_PROMPTS} or more."
    )
    require(count >= JUDGED_PROMPTS, "eval.generations", count, remedy)
    judge, baseline = find_judge(spec), find_baseline(spec)
    read_rubric(spec)
    name = spec.eval.winrate.baseline
    if name is not None and baseline is None:
        read_answers(name)
    require_impartial(judge, spec, [*candidates, *([baseline] if baseline else [])])


def check_rows(spec: Experiment, rows: HeldoutRows) -> None:
    """Raise UserError where the baseline has no answer to one of the prompts."""
    asked, name = rows.prompts(spec.eval.generations), spec.eval.winrate.baseline
    if name is None:
        own_answers(asked)
    elif is_answer_file(name):
        match(asked, read_answers(name), name)


def made_of_contest(spec: Experiment) -> dict[str, Any]:
    """The judge, the baseline and the rubric, by what they are made of."""
    name = spec.eval.winrate.baseline
    judge, baseline = find_judge(spec), find_baseline(spec)
    answers = read_answers(name) if name is not None and baseline is None else None
    return {
        "judge": made_of(judge) if judge else spec.eval.winrate.judge_model,
        "baseline": made_of(baseline) if baseline else answers,
        "rubric": read_rubric(spec),
    }
