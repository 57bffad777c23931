"""The win rate of a model's answers over a baseline's, by a judge that stands trial first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import LengthPenalty, Measure
from ..data import Row, prompt_messages
from ..runtime.progress import progress_tracker
from .baseline import match, own_answer, own_answers, read_answers
from .candidates import Candidate
from .contest import find_baseline
from .intervals import Scores
from .judges.choice import family_of, open_judge
from .judges.local import ChatJudge
from .judges.verdicts import Asked, Judge, Pair, ask
from .prompts import prompt_digest
from .results import MeasureResult
from .trial import Trial, build_cases, chosen, try_family, try_judge
from .winrate import Preferences, WinRate, length_controlled, win_rate

if TYPE_CHECKING:
    from .measures import MeasureContext
    from .subject import Subject

WINRATE = "winrate"
DOUBTED = "winrate/judge_failed"  # the name of the same by a judge that failed its trial, wherever it goes
JUDGMENTS_FILE = "judgments.jsonl"
WHOLE_VERDICTS = {0.0, 0.25, 0.5, 0.75, 1.0}  # means over both orders of wins, ties and losses
OWN_ANSWERS = "the data's own answers"


@dataclass
class JudgedAnswers:
    """What all models of an evaluation are compared by: made for the first, kept for the others."""

    judge: Judge
    rows: list[Row]
    baseline: str
    answers: list[str]  # the baseline's
    baseline_candidate: Candidate | None
    trial: Trial | None = None

    @property
    def prompts(self) -> list[Any]:
        """The messages before each answer."""
        return [prompt_messages(row) for row in self.rows]


def measure_winrate(subject: Subject, context: MeasureContext) -> MeasureResult:
    """Both orders of every pair of answers; identical ones are ties. The judge is tried once, and on its own
    family for each model.
    """
    kept = _kept(subject, context)
    kept.judge.counts.clear()  # what happened is told of each model
    own = _write(subject, kept.rows, context)
    pairs = [
        Pair(tuple(prompt), ours, theirs)
        for prompt, ours, theirs in zip(kept.prompts, own, kept.answers, strict=True)
    ]
    with _asking(kept.judge):
        if kept.trial is None:
            known = [(prompt_messages(row), own_answer(row) or "", row.get("answer")) for row in kept.rows]
            kept.trial = try_judge(kept.judge, build_cases(known, context.spec.eval.winrate.trial_prompts))
        trial = _with_family(kept, kept.trial, subject, own, context)
        asked = ask(kept.judge, pairs, f"{kept.judge.name} judges {subject.name}")
    return _result(kept, trial, pairs, asked, context)


def _with_family(
    kept: JudgedAnswers, trial: Trial, subject: Subject, own: list[str], context: MeasureContext
) -> Trial:
    """The trial, with the check of its own family where one side alone is of it."""
    family = family_of(context.spec)
    ours = family.holds(subject.candidate)
    theirs = kept.baseline_candidate is not None and family.holds(kept.baseline_candidate)
    if ours == theirs:
        return trial
    sides = (own, kept.answers) if ours else (kept.answers, own)
    return try_family(kept.judge, trial, kept.prompts, *sides)


@contextmanager
def _asking(judge: Any) -> Iterator[None]:
    """A judge on this machine gives its memory back, however the block ends."""
    try:
        yield
    finally:
        judge.close()


def _kept(subject: Subject, context: MeasureContext) -> JudgedAnswers:
    """What was made for an earlier model, or made now."""
    found = context.shared.get(Measure.winrate)
    if not isinstance(found, JudgedAnswers):
        rows = context.rows.prompts(context.spec.eval.generations)
        candidate, answers = _baseline(rows, subject, context)
        name = context.spec.eval.winrate.baseline or OWN_ANSWERS
        found = JudgedAnswers(open_judge(context.spec, context.console), rows, name, answers, candidate)
        context.shared[Measure.winrate] = found
    return found


def _baseline(
    rows: list[Row], subject: Subject, context: MeasureContext
) -> tuple[Candidate | None, list[str]]:
    from .subject import free, load_subject

    name = context.spec.eval.winrate.baseline
    if name is None:
        return None, own_answers(rows)
    candidate = find_baseline(context.spec)
    if candidate is None:
        return None, match(rows, read_answers(name), name)
    if candidate.folder.resolve() == subject.candidate.folder.resolve():
        return candidate, _write(subject, rows, context)
    loaded = load_subject(candidate, subject.longest, context.console)
    try:
        return candidate, _write(loaded, rows, context)
    finally:
        free(loaded)


def _write(subject: Subject, rows: list[Row], context: MeasureContext) -> list[str]:
    """The subject's greedy answers."""
    from ..engine.generation import generate_answers

    return generate_answers(
        subject.model,
        subject.tokenizer,
        rows,
        context.spec.eval,
        subject.device,
        subject.dtype,
        progress_tracker(f"answers of {subject.name}", context.console),
    )


def _result(
    kept: JudgedAnswers, trial: Trial, pairs: Sequence[Pair], asked: Asked, context: MeasureContext
) -> MeasureResult:
    judge, settings = kept.judge, context.spec.eval.winrate
    known = [
        (row, pair, verdict)
        for row, pair, verdict in zip(kept.rows, pairs, asked.verdicts, strict=True)
        if verdict is not None
    ]
    values = [verdict.preference for _, _, verdict in known]
    prompts = [prompt_digest(row) for row, _, _ in known]
    preferences = Preferences(
        values, [len(pair.answer) for _, pair, _ in known], [len(pair.other) for _, pair, _ in known], prompts
    )
    raw = win_rate(preferences)
    penalized = settings.length_penalty is LengthPenalty.cross_validated
    controlled = length_controlled(preferences, cross_validated=penalized)
    by = f"{judge.name} ({settings.judge.name})" + ("" if trial.passed else ", which FAILED its trial")
    outcomes = [chosen(verdict) for _, _, verdict in known]
    table = [
        _row("win rate", by, raw, prompts),
        _row("win rate at equal lengths", by, controlled, prompts),
        *(
            {"figure": name, "judge": by, "value": count}
            for name, count in (
                ("wins", outcomes.count(1.0)),
                ("ties", outcomes.count(0.5)),
                ("losses", outcomes.count(0.0)),
                ("identical answers, ties without asking", sum(not v.is_asked for _, _, v in known)),
                ("pairs without a verdict, left out", asked.missing),
            )
        ),
        *({"figure": name, "judge": by, "value": value} for name, value in _lengths(preferences)),
    ]
    text = "".join(
        json.dumps(_as_line(pair, verdict), ensure_ascii=False) + "\n"
        for pair, verdict in zip(pairs, asked.verdicts, strict=True)
    )
    # a probability may vary less than a verdict of yes or no: its interval is that of a mean
    is_share = set(values) <= WHOLE_VERDICTS
    name = WINRATE if trial.passed else DOUBTED
    scores = {name: Scores(values, share=is_share, prompts=prompts)} if known else {}
    tables = {f"Win rate over {kept.baseline}": table, f"Trial of the judge {judge.name}": trial.table()}
    return MeasureResult(scores, tables, {JUDGMENTS_FILE: text}, _lines(kept, trial, asked, raw, controlled))


def _row(name: str, by: str, rate: WinRate, prompts: Sequence[str]) -> dict[str, Any]:
    """A figure with its interval, as tables draw them."""
    interval = list(rate.ci95) if rate.ci95 else None
    estimate = {"value": rate.value, "ci95": interval, "n": len(prompts), "prompts": len(set(prompts))}
    error = None if math.isnan(rate.standard_error) else rate.standard_error
    return {"figure": name, "judge": by, "value": estimate, "standard error": error}


def _lengths(preferences: Preferences) -> Iterator[tuple[str, float]]:
    """How long both sides' answers are, and how often the longer one is preferred."""
    ours, theirs = preferences.candidate_lengths, preferences.baseline_lengths
    count = len(preferences.values)
    if not count:
        return
    yield "characters of an answer", sum(ours) / count
    yield "characters of the baseline's", sum(theirs) / count
    longer = [
        value if own > other else 1 - value
        for value, own, other in zip(preferences.values, ours, theirs, strict=True)
        if own != other
    ]
    if longer:
        yield "preference for the longer answer", sum(longer) / len(longer)


def _lines(kept: JudgedAnswers, trial: Trial, asked: Asked, raw: WinRate, controlled: WinRate) -> list[str]:
    """The outcome in words, the trial, and what happened on the way."""
    doubt = "" if trial.passed else " (by a judge that FAILED its trial)"
    lines = [
        f"win rate over {kept.baseline}: {_percent(raw)}; at equal lengths {_percent(controlled)}{doubt}",
        trial.sentence(kept.judge.name),
    ]
    if asked.missing:
        lines.append(f"no verdict on {asked.missing} of {len(asked.verdicts)} pairs: they are left out")
    if kept.judge.counts:
        said = ", ".join(f"{count} {what}" for what, count in sorted(kept.judge.counts.items()))
        lines.append(f"questions to {kept.judge.name}: {said}")
    if isinstance(kept.judge, ChatJudge) and kept.judge.letter_mass:
        share = sum(kept.judge.letter_mass) / len(kept.judge.letter_mass)
        lines.append(f"{kept.judge.name} gives A and B {share:.0%} of the probability of its next token")
    return lines


def _percent(rate: WinRate) -> str:
    between = f" [{rate.ci95[0]:.1%}, {rate.ci95[1]:.1%}]" if rate.ci95 else ""
    return f"{rate.value:.1%}{between}"


def _as_line(pair: Pair, verdict: Any) -> dict[str, Any]:
    """A row of judgments.jsonl."""
    return {
        "prompt": list(pair.prompt),
        "answer": pair.answer,
        "baseline": pair.other,
        "preference": verdict.preference if verdict else None,
        "shown_first": verdict.shown_first if verdict else None,
        "shown_second": verdict.shown_second if verdict else None,
        "asked": verdict.is_asked if verdict else True,
    }
