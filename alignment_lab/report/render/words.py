"""A study in sentences: what was found, what is noise, what cannot be told, and for how many comparisons that was corrected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..study.configurations import counted
from ..study.runs import RunRecord
from ..study.stats import Estimate
from ..study.study import LOWER_IS_BETTER, ONE_SEED, OWN_SCALE, Study, Verdict
from . import text

ONE_SEED_ADVICE = "Whether a difference comes from the setting or from chance in training cannot be told from one seed: sweep training.seed=1,2,3."
SAID = {
    "higher": "higher",
    "lower": "lower",
    "noise": "not told apart",
    ONE_SEED: "one seed: cannot tell",
    OWN_SCALE: "on its own scale",
    "no spread": "no spread over seeds",
}
EXPLAINED = {
    "higher": "significantly higher",
    "lower": "significantly lower",
    "noise": "not to be told from it, as the difference may be noise",
    ONE_SEED: "not to be judged from one seed",
    "no spread": "apart by the same amount with every seed, which leaves no spread to judge by",
}


def findings(study: Study) -> list[str]:
    """The answer to `which is better`, on the headline metric, in at most four sentences."""
    if study.reference is None or study.headline is None:
        return ["Nothing that can be compared was measured."] if study.cells else []
    return [
        sentence
        for sentence in (_first(study), *_verdicts(study), _rows(study), correction(study))
        if sentence
    ]


def _first(study: Study) -> str:
    assert study.reference is not None and study.headline is not None
    name, shown = study.headline, study.reference.shown(study.headline)
    over = "" if not shown else f", over {shown['n']} seeds" if shown["of"] == "seeds" else ", with one seed"
    if not study.picked:
        return f"The baseline is {study.reference.label}: {name} {text.with_interval(shown)}{over}."
    best = study.reference.mean(name)
    ties = [
        one.label
        for one in study.configurations
        if best and (mean := one.mean(name)) and mean.value == best.value
    ]
    extreme = "lowest" if name.endswith(LOWER_IS_BETTER) else "highest"
    tied = f" Exactly as {extreme[:-3]}: {_listed(ties[1:])}." if len(ties) > 1 else ""
    return f"{study.reference.label} has the {extreme} {name}: {text.with_interval(shown)}{over}.{tied}"


def _verdicts(study: Study) -> Iterator[str]:
    found = study.verdicts.get(study.headline or "", {})
    groups = {word: [label for label, one in found.items() if one.word == word] for word in EXPLAINED}
    said = [
        f"{len(labels)} {'is' if len(labels) == 1 else 'are'} {EXPLAINED[word]} ({_listed(labels)})"
        for word, labels in groups.items()
        if labels
    ]
    if said:
        yield f"Of the {len(found)} others, {'; '.join(said)}."
    if groups[ONE_SEED]:
        yield ONE_SEED_ADVICE


def _listed(labels: Sequence[str], most: int = 3) -> str:
    return "; ".join(labels[:most]) + (f"; and {len(labels) - most} more" if len(labels) > most else "")


def _rows(study: Study) -> str:
    found = [one for one in study.verdicts.get(study.headline or "", {}).values() if one.rows_word]
    if not found:
        return ""
    counts = {word: sum(one.rows_word == word for one in found) for word in ("higher", "lower", "noise")}
    count = max(one.rows.n for one in found if one.rows)
    said = ", ".join(
        f"{number} {EXPLAINED[word].partition(',')[0]}" for word, number in counts.items() if number
    )
    return f"Row by row on the same {count} held-out prompts, these very models: {said}. That says nothing of models from other seeds."


def correction(study: Study) -> str:
    """For how many comparisons p-values were corrected, and why so many."""
    family = study.family(study.headline or "")
    tested = any(
        one.p is not None or one.rows_p is not None
        for one in study.verdicts.get(study.headline or "", {}).values()
    )
    if not family or not tested:
        return ""
    if not study.picked:
        pairs = "comparison" if family == 1 else f"{family} comparisons"
        return f"Holm's correction for the {pairs} with the baseline: when nothing differs, a false alarm on one metric in 20 such studies."
    pairs = "one pair" if family == 1 else f"all {family} pairs"
    return (
        f"Holm's correction for {pairs}, as the best was picked from the same numbers (--baseline NAME asks fewer): when nothing differs, "
        "a false alarm on one metric in 20 such studies. Looking at many metrics is not corrected for."
    )


def verdict(one: Verdict | None) -> str:
    """`higher`, `not told apart`, `one seed: cannot tell`: the verdict in a table."""
    return text.ABSENT if one is None else SAID.get(one.word, one.word)


def p_value(p: float | None) -> str:
    """`p=0.031`, `p<0.001`, or nothing."""
    return "" if p is None else "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={p:.2f}"


def difference(one: Estimate | None) -> str:
    """`-0.12 [-0.20, -0.04]`, with a sign."""
    if one is None:
        return text.ABSENT
    plain = {"value": one.value, "ci95": list(one.ci95) if one.ci95 else None}
    return ("+" if one.value > 0 else "") + text.with_interval(plain)


def left_out(cells: Sequence[RunRecord]) -> list[tuple[RunRecord, str]]:
    """The cells that count in no mean, each with the reason."""
    return [(cell, cell.error or _reason(cell)) for cell in cells if not counted(cell)]


def _reason(cell: RunRecord) -> str:
    reasons = {
        "queued": "has not started",
        "running": "has not ended",
        "interrupted": "was stopped; the same command goes on with it",
        "finished": "left no report.json",
    }
    return reasons.get(cell.status, "gave no reason")
