"""The trial of a judge: pairs of answers of which it is known which is better, or that neither is.

A verdict is believed no further than the judge finds what was planted. Thresholds are in LIMITS. Refuses to
know what a judge is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.rows import Message
from .intervals import Scores
from .judges.verdicts import Judge, Pair, Verdict, ask
from .trial_facts import FACTS

LEAST = 8  # cases that a check needs: of fewer it says nothing
SHORTEST = 4  # words of an answer that is cut
FILLER = (
    "To say it once more: {} That is the whole of it, and there is nothing to be added here that would "
    "change it in any way. I hope that this has been of help to you."
)


@dataclass(frozen=True)
class Check:
    """One thing that is asked of a judge."""

    question: str
    limit: float
    at_most: bool  # whether the share may be at most the limit, or must be at least that

    def holds(self, share: float) -> bool:
        """Whether a share is within the limit."""
        return share <= self.limit if self.at_most else share >= self.limit

    @property
    def wanted(self) -> str:
        """The limit in words."""
        return f"at {'most' if self.at_most else 'least'} {self.limit:.0%}"


LIMITS: dict[str, Check] = {
    "no verdict": Check("pairs that it gave no verdict on", 0.05, at_most=True),
    "order": Check("verdicts that change with the order of the answers", 0.25, at_most=True),
    "length": Check("prefers an answer to which only words were added", 0.6, at_most=True),
    "wrong fact": Check("prefers the right answer to one with a wrong fact", 0.75, at_most=False),
    "cut answer": Check("prefers the whole answer to one that is cut", 0.75, at_most=False),
    "other prompt": Check("prefers the answer to one that answers another prompt", 0.75, at_most=False),
    "own family": Check("favors the misplaced answers of a model of its own family", 0.2, at_most=True),
}


@dataclass(frozen=True)
class Case:
    """A prompt with a good answer, and where it is known, what makes it right."""

    prompt: tuple[Message, ...]
    good: str
    wrong: str | None = None  # the good answer with a wrong fact in the place of the right one


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    name: str  # of LIMITS
    scores: Scores

    @property
    def check(self) -> Check:
        """What was asked."""
        return LIMITS[self.name]

    @property
    def holds(self) -> bool:
        """Whether the judge passes."""
        return self.check.holds(self.scores.mean)


@dataclass(frozen=True)
class Trial:
    """What came of a judge's trial."""

    outcomes: list[Outcome]
    untried: list[str]  # checks for which there were too few cases

    @property
    def failed(self) -> list[str]:
        """The names of the checks that it did not pass."""
        return [outcome.name for outcome in self.outcomes if not outcome.holds]

    @property
    def passed(self) -> bool:
        """Whether its verdicts may be believed."""
        return not self.failed

    def table(self) -> list[dict[str, Any]]:
        """A row for each check."""
        rows = [
            {
                "check": each.name,
                "what": each.check.question,
                "share": dict(each.scores.estimate()),
                "wanted": each.check.wanted,
                "result": "passed" if each.holds else "FAILED",
            }
            for each in self.outcomes
        ]
        untried = [
            {
                "check": name,
                "what": LIMITS[name].question,
                "share": None,
                "wanted": LIMITS[name].wanted,
                "result": "not tried: too few cases",
            }
            for name in self.untried
        ]
        return rows + untried

    def sentence(self, judge: str) -> str:
        """The outcome in a line."""
        if self.passed:
            return f"judge {judge}: passed its trial ({len(self.outcomes)} checks)"
        parts = [
            f"{each.check.question}: {each.scores.mean:.0%}, wanted {each.check.wanted}"
            for each in self.outcomes
            if not each.holds
        ]
        return f"judge {judge}: FAILED its trial ({'; '.join(parts)}): its figures are no evidence"


def build_cases(known: Sequence[tuple[Sequence[Message], str, list[str] | None]], count: int) -> list[Case]:
    """Cases from prompts with good answers and the facts in them, where the data name them: accepted strings,
    the first of which is replaced by that of another prompt. Filled up with questions of the lab's own.
    """
    facts = [accepted for _, _, accepted in known if accepted]
    cases = []
    for place, (prompt, good, accepted) in enumerate(known):
        if not good.strip():
            continue
        wrong = _with_wrong_fact(good, accepted, facts, place) if accepted else None
        cases.append(Case(tuple(prompt), good.strip(), wrong))
    cases = cases[:count]
    short_of_facts = sum(case.wrong is not None for case in cases) < LEAST
    if len(cases) < LEAST or short_of_facts:
        cases += own_cases()[:count]
    return cases


def own_cases() -> list[Case]:
    """The lab's own questions."""
    return [
        Case(({"role": "user", "content": question},), text.format(right), text.format(wrong))
        for question, text, right, wrong in FACTS
    ]


def _with_wrong_fact(
    good: str, accepted: Sequence[str], facts: Sequence[Sequence[str]], place: int
) -> str | None:
    """The answer with another prompt's fact in place of its own; None where it lacks its own."""
    pattern = re.compile(rf"(?<!\w){re.escape(accepted[0])}(?!\w)", re.IGNORECASE)
    own = {each.lower() for each in accepted}
    others = [facts[(place + step) % len(facts)][0] for step in range(1, len(facts))]
    other = next((each for each in others if each.lower() not in own), None)
    if other is None or not pattern.search(good):
        return None
    return pattern.sub(lambda _: other, good)


def try_judge(judge: Judge, cases: Sequence[Case]) -> Trial:
    """Ask the judge of every planted defect, in both orders."""
    planted: dict[str, Callable[[int, Case], Pair | None]] = {
        "length": lambda _, case: Pair(case.prompt, f"{case.good} {FILLER.format(case.good)}", case.good),
        "wrong fact": lambda _, case: Pair(case.prompt, case.good, case.wrong) if case.wrong else None,
        "cut answer": lambda _, case: _cut_pair(case),
        "other prompt": lambda place, case: _misplaced(cases, place, case),
    }
    asked = [
        (name, pair)
        for name, plant in planted.items()
        for place, case in enumerate(cases)
        if (pair := plant(place, case)) is not None
    ]
    verdicts = ask(judge, [pair for _, pair in asked], f"trial of {judge.name}").verdicts
    found: dict[str, list[float]] = {name: [] for name in LIMITS if name != "own family"}
    for (name, _), verdict in zip(asked, verdicts, strict=True):
        found["no verdict"].append(float(verdict is None))
        if verdict is not None:
            found[name].append(chosen(verdict))
            found["order"].append(verdict.flip)
    if not judge.depends_on_order:
        del found["order"]
    enough = {name: values for name, values in found.items() if len(values) >= LEAST}
    outcomes = [Outcome(name, Scores(values, share=True)) for name, values in enough.items()]
    return Trial(outcomes, [name for name in found if name not in enough])


def chosen(verdict: Verdict) -> float:
    """1 where both orders together say that the pair's first answer is better, 0.5 for a tie, else 0."""
    preference = verdict.preference
    return 0.5 if abs(preference - 0.5) < 1e-9 else float(preference > 0.5)


def try_family(
    judge: Judge, trial: Trial, prompts: Sequence[Sequence[Message]], own: Sequence[str], other: Sequence[str]
) -> Trial:
    """The trial with the check of whether the judge favors a model of its own family.

    `own` are that model's answers, `other` another's to the same prompts. Of each an answer to another prompt
    is put beside the right one of the other model: how often it is preferred where its family wrote it, less
    how often where the other did.
    """
    shift = [(place + 1) % len(prompts) for place in range(len(prompts))]
    places = [place for place in range(len(prompts)) if own[shift[place]] != own[place]]
    ours = [Pair(tuple(prompts[place]), own[shift[place]], other[place]) for place in places]
    theirs = [Pair(tuple(prompts[place]), other[shift[place]], own[place]) for place in places]
    verdicts = ask(judge, [*ours, *theirs], f"trial of {judge.name}: its own family").verdicts
    values = [
        chosen(first) - chosen(second)
        for first, second in zip(verdicts[: len(ours)], verdicts[len(ours) :], strict=True)
        if first is not None and second is not None
    ]
    if len(values) < LEAST:
        return replace(trial, untried=[*trial.untried, "own family"])
    return replace(trial, outcomes=[*trial.outcomes, Outcome("own family", Scores(values))])


def _cut_pair(case: Case) -> Pair | None:
    """The answer beside its first half; None where it is too short to be cut."""
    words = case.good.split()
    return (
        Pair(case.prompt, case.good, " ".join(words[: len(words) // 2])) if len(words) >= SHORTEST else None
    )


def _misplaced(cases: Sequence[Case], place: int, case: Case) -> Pair | None:
    """The answer beside that of the next case."""
    other = cases[(place + 1) % len(cases)].good
    return Pair(case.prompt, case.good, other) if other != case.good else None
