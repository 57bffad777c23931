"""A comparison in sentences: findings, what may be noise, what cannot be judged, what was corrected for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...config.metrics import Direction, metric
from ..study.comparison import ONE_SEED, OWN_SCALE, Comparison, Verdict
from ..study.headline import is_comparable
from ..study.runs import RunRecord
from ..study.stats import Estimate
from .formatting import ABSENT, format_measured

ONE_SEED_ADVICE = (
    "One seed cannot show whether a difference comes from the setting or from chance: "
    "sweep training.seed=1,2,3."
)
OUTCOMES = {  # in a table
    "higher": "higher",
    "lower": "lower",
    "noise": "not significant",
    ONE_SEED: "one seed: cannot tell",
    OWN_SCALE: "on its own scale",
    "no spread": "no spread over seeds",
}
PREDICATES = {  # in a sentence: "2 are ..."
    "higher": "significantly higher",
    "lower": "significantly lower",
    "noise": "not significantly different, so that the difference may be noise",
    ONE_SEED: "undecided, with one seed",
    OWN_SCALE: "on another scale, which cannot be compared",
    "no spread": "different by the same amount with every seed, which leaves no spread to judge by",
}


def findings(comparison: Comparison) -> list[str]:
    """Which configuration is better on the headline metric, in a few sentences."""
    if comparison.reference is None or comparison.headline is None:
        return _nothing_ranked(comparison)
    sentences = (
        _reference_sentence(comparison),
        *_outcome_sentences(comparison),
        _scope_sentence(comparison),
        _row_sentence(comparison),
        correction_note(comparison),
    )
    return [sentence for sentence in sentences if sentence]


def _nothing_ranked(comparison: Comparison) -> list[str]:
    """Why no configuration is called the best."""
    own = [name for name in comparison.metrics if not is_comparable(name, comparison.records)]
    if comparison.headline in own:
        own = [comparison.headline]
    elif not own or comparison.headline is not None:
        return ["Nothing that can be compared was measured."] if comparison.records else []
    verb = "is" if len(own) == 1 else "are"
    return [
        f"Not ranked: {_join(own)} {verb} on each method's own scale, and not comparable between these runs."
    ]


def _reference_sentence(comparison: Comparison) -> str:
    assert comparison.reference is not None and comparison.headline is not None
    name, reference = comparison.headline, comparison.reference
    measured = reference.measured(name)
    seeds = ""
    if measured:
        seeds = f", over {measured['n']} seeds" if measured["unit"] == "seeds" else ", with one seed"
    if not comparison.reference_is_best:
        return f"The baseline is {reference.label}: {name} {format_measured(measured)}{seeds}."
    best = reference.mean(name)
    ties = [
        each.label
        for each in comparison.configurations
        if best and (mean := each.mean(name)) and mean.value == best.value
    ]
    minimized = metric(name).direction is Direction.minimize
    tied = f" Exactly as {'low' if minimized else 'high'}: {_join(ties[1:])}." if len(ties) > 1 else ""
    extreme = "lowest" if minimized else "highest"
    return f"{reference.label} has the {extreme} {name}: {format_measured(measured)}{seeds}.{tied}"


def _outcome_sentences(comparison: Comparison) -> Iterator[str]:
    verdicts = comparison.headline_verdicts
    groups = {
        outcome: [label for label, verdict in verdicts.items() if verdict.outcome == outcome]
        for outcome in PREDICATES
    }
    clauses = [
        f"{len(labels)} {'is' if len(labels) == 1 else 'are'} {PREDICATES[outcome]} ({_join(labels)})"
        for outcome, labels in groups.items()
        if labels
    ]
    if clauses:
        yield f"Of {len(verdicts)} other{'s' if len(verdicts) > 1 else ''}, {'; '.join(clauses)}."
    if groups[ONE_SEED]:
        yield ONE_SEED_ADVICE


def format_scope(difference: Estimate) -> str:
    """Which population a difference over seeds speaks of: `over seeds and prompts`."""
    return "over seeds and prompts" if difference.prompts else "over seeds, on these held-out prompts"


def _scope_sentence(comparison: Comparison) -> str:
    """Which population `significantly` is said of, and that two seeds say little."""
    judged = [
        verdict.difference
        for verdict in comparison.headline_verdicts.values()
        if verdict.difference and verdict.p is not None
    ]
    if not judged:
        return ""
    narrow = [difference for difference in judged if not difference.prompts]
    prompts = max((difference.prompts or 0 for difference in judged), default=0)
    if not narrow:
        scope = f"This is said of other seeds and of prompts like the {prompts} held-out ones."
    else:
        which = "This" if len(narrow) == len(judged) else f"Of {len(narrow)} of them this"
        scope = (
            f"{which} is said of other seeds on these very held-out prompts, and of no other prompts: "
            "the runs do not have the scores of their rows on the same prompts (row_scores.json)."
        )
    two_seeds = " Of two seeds, only a very large difference can be significant."
    return scope + (two_seeds if min(difference.n for difference in judged) == 2 else "")


def _join(labels: Sequence[str], most: int = 3) -> str:
    return "; ".join(labels[:most]) + (f"; and {len(labels) - most} more" if len(labels) > most else "")


def _row_sentence(comparison: Comparison) -> str:
    judged = [verdict for verdict in comparison.headline_verdicts.values() if verdict.row_outcome]
    if not judged:
        return ""
    counts = {
        outcome: sum(verdict.row_outcome == outcome for verdict in judged)
        for outcome in ("higher", "lower", "noise")
    }
    clauses = [
        f"{count} {PREDICATES[outcome].partition(',')[0]}" for outcome, count in counts.items() if count
    ]
    prompts = max(verdict.row_difference.n for verdict in judged if verdict.row_difference)
    return (
        f"These very models, on prompts like the {prompts} held-out ones: {', '.join(clauses)}. "
        "That says nothing of models from other seeds."
    )


def correction_note(comparison: Comparison) -> str:
    """For how many comparisons p-values were corrected, and why so many."""
    size = comparison.family_size(comparison.headline or "")
    tested = any(
        verdict.p is not None or verdict.row_p is not None
        for verdict in comparison.headline_verdicts.values()
    )
    if not size or not tested:
        return ""
    guarantee = "if nothing differs, at most 1 in 20 such studies has a false alarm on one metric"
    if not comparison.reference_is_best:
        count = "comparison" if size == 1 else f"{size} comparisons"
        return f"Holm's correction for the {count} with the baseline: {guarantee}."
    pairs = "one pair" if size == 1 else f"all {size} pairs"
    return (
        f"Holm's correction for {pairs}, as the best was picked from the same numbers "
        f"(--baseline NAME needs fewer): {guarantee}. Looking at many metrics is not corrected for."
    )


def format_outcome(verdict: Verdict | None) -> str:
    """`higher`, `not significant`, `one seed: cannot tell`: the verdict in a table."""
    return ABSENT if verdict is None else OUTCOMES.get(verdict.outcome, verdict.outcome)


def format_p(p: float | None) -> str:
    """`p=0.031`, `p<0.001`, or an empty string."""
    return "" if p is None else "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={p:.2f}"


def format_verdict(verdict: Verdict | None) -> str:
    """The outcome with its p-value."""
    return f"{format_outcome(verdict)} {format_p(verdict.p if verdict else None)}".strip()


def format_difference(difference: Estimate | None) -> str:
    """`-0.12 [-0.20, -0.04]`, with a sign."""
    if difference is None:
        return ABSENT
    sign = "+" if difference.value > 0 else ""
    return sign + format_measured({"value": difference.value, "ci95": difference.ci95})


def format_verdict_difference(verdict: Verdict | None) -> str:
    """The difference over seeds of a verdict, or a dash."""
    return format_difference(verdict.difference if verdict else None)


def left_out(records: Sequence[RunRecord]) -> list[tuple[RunRecord, str]]:
    """The runs that count in no mean, each with the reason."""
    return [(record, record.error or _reason(record.status)) for record in records if not record.has_results]


def _reason(status: str) -> str:
    reasons = {
        "queued": "has not started",
        "running": "has not ended",
        "interrupted": "was interrupted; the same command resumes it",
        "finished": "left no report.json",
    }
    return reasons.get(status, "gave no reason")
