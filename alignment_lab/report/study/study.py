"""What a set of cells shows: which differences between configurations are more than noise, and what cannot be told.

Every configuration is compared with one: a chosen baseline, else the best on the headline metric. Refuses to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from ...runtime.errors import UserError
from . import comparability, stats
from .configurations import Configuration, configurations, row_scores
from .runs import RunRecord
from .stats import Estimate

SIGNIFICANT = 1 - stats.LEVEL
LOWER_IS_BETTER = ("loss",)
PAIRED, APART, ONE_SEED, OWN_SCALE = "paired by seed", "seeds not paired", "one seed", "own scale"


@dataclass(frozen=True)
class Verdict:
    """One configuration beside the reference, on one metric. p-values are adjusted by Holm."""

    difference: Estimate | None
    how: str
    p: float | None = None
    rows: Estimate | None = None  # the same models on the same held-out rows; says nothing of other seeds
    rows_p: float | None = None

    @property
    def word(self) -> str:
        """higher, lower, noise, or why it cannot be told: one seed, no spread, own scale."""
        if self.difference is None or self.how in (ONE_SEED, OWN_SCALE):
            return self.how
        return "no spread" if self.p is None else _word(self.difference, self.p)

    @property
    def rows_word(self) -> str | None:
        """higher, lower or noise on the same held-out rows; None where the runs left no scores of single rows."""
        return None if self.rows is None or self.rows_p is None else _word(self.rows, self.rows_p)


def _word(difference: Estimate, p: float) -> str:
    return "noise" if p >= SIGNIFICANT else "higher" if difference.value > 0 else "lower"


@dataclass(frozen=True)
class Study:
    """Cells, the configurations that they are seeds of, and how each compares with the reference, by metric and label."""

    cells: list[RunRecord]
    configurations: list[Configuration]
    metrics: list[str]
    headline: str | None
    reference: Configuration | None = None
    picked: bool = False  # the reference is the best, picked from the same numbers, and no chosen baseline
    verdicts: dict[str, dict[str, Verdict]] = field(default_factory=dict)

    @cached_property
    def warnings(self) -> list[str]:
        """What forbids comparing the cells."""
        return comparability.warnings(self.cells)

    @property
    def seeds(self) -> int:
        """The most seeds that a configuration was finished with."""
        return max((len(found.seeds) for found in self.configurations), default=0)

    def family(self, metric: str) -> int:
        """How many comparisons a p-value of this metric is corrected for."""
        judged = sum(verdict.difference is not None for verdict in self.verdicts.get(metric, {}).values())
        return judged * (judged + 1) // 2 if self.picked else judged


def study(cells: Sequence[RunRecord], baseline: str | None = None, metric: str | None = None) -> Study:
    """Compare. Raises UserError where `baseline` or `metric` names nothing."""
    made = configurations(cells)
    metrics = comparability.metric_names(cells)
    if metric is not None and metric not in metrics:
        raise UserError(
            f"--metric {metric}: no cell measured it; give one of: {', '.join(metrics) or 'none was measured'}."
        )
    headline = metric or comparability.headline(cells)
    reference = _named(made, baseline) if baseline is not None else _best(made, headline)
    found = Study(list(cells), made, metrics, headline, reference, picked=baseline is None)
    if reference is None:
        return found
    verdicts = {name: _verdicts(found, reference, name) for name in metrics}
    return replace(
        found,
        verdicts={
            name: _adjusted(replace(found, verdicts={name: raw}), name) for name, raw in verdicts.items()
        },
    )


def _named(found: Sequence[Configuration], baseline: str) -> Configuration:
    """The configuration of that label or cell, or the only one whose label has all of the words."""
    names = {
        one.label: {one.label, *(name for cell in one.cells for name in (cell.label, cell.run.path.name))}
        for one in found
    }
    words = set(baseline.replace(",", " ").split())
    matching = [one for one in found if baseline in names[one.label]] or [
        one for one in found if words <= _words(one.label)
    ]
    if len(matching) == 1 and matching[0].seeds:
        return matching[0]
    why = "did not finish" if len(matching) == 1 else "fits several" if matching else "no such configuration"
    listed = "; ".join(one.label for one in (matching if len(matching) > 1 else found) if one.seeds)
    raise UserError(f"--baseline {baseline}: {why}; give one of: {listed or 'none, as nothing finished'}.")


def _words(label: str) -> set[str]:
    """Its words, `beta=0.1` as itself and as `0.1`."""
    said = label.replace(",", " ").split()
    return {*said, *(word.partition("=")[2] or word for word in said)}


def _best(found: Sequence[Configuration], headline: str | None) -> Configuration | None:
    if headline is None:
        return None
    means = [(mean.value, one) for one in found if (mean := one.mean(headline))]
    choose = partial(min if headline.endswith(LOWER_IS_BETTER) else max, key=lambda pair: pair[0])
    return choose(means)[1] if means else None


def _verdicts(found: Study, reference: Configuration, metric: str) -> dict[str, Verdict]:
    others = [one for one in found.configurations if one is not reference and one.mean(metric)]
    return {one.label: _verdict(one, reference, metric) for one in others} if reference.mean(metric) else {}


def _verdict(ours: Configuration, theirs: Configuration, metric: str) -> Verdict:
    if not comparability.on_one_scale(metric, [ours.cells[0], theirs.cells[0]]):
        return Verdict(None, OWN_SCALE)
    mine, other = ours.values(metric), theirs.values(metric)
    shared = [seed for seed in mine if seed in other]
    rows = _by_rows(ours, theirs, metric, shared)
    if len(shared) > 1:
        return Verdict(stats.paired([mine[s] for s in shared], [other[s] for s in shared]), PAIRED, rows=rows)
    apart = stats.apart(list(mine.values()), list(other.values()))
    return Verdict(apart, APART if apart.n > 1 else ONE_SEED, rows=rows)


def _by_rows(
    ours: Configuration, theirs: Configuration, metric: str, seeds: Sequence[object]
) -> Estimate | None:
    """The difference on the same prompts, averaged over shared seeds; an exact sign test where a row is right or wrong."""
    pairs = [(row_scores(ours.seeds[seed], metric), row_scores(theirs.seeds[seed], metric)) for seed in seeds]
    prompts = (
        [key for key in pairs[0][0] if all(key in side for pair in pairs for side in pair)] if pairs else []
    )
    if len(prompts) < 2:
        return None
    differences = [sum(mine[key] - other[key] for mine, other in pairs) / len(pairs) for key in prompts]
    found = stats.mean(differences)
    return replace(found, p=stats.sign_test(differences)) if set(differences) <= {-1.0, 0.0, 1.0} else found


def _adjusted(found: Study, metric: str) -> dict[str, Verdict]:
    """The verdicts with p-values corrected for all comparisons of this metric."""
    raw, family = found.verdicts[metric], found.family(metric)
    by_seed = {
        label: one.difference.p
        for label, one in raw.items()
        if one.difference and one.difference.p is not None
    }
    by_row = {label: one.rows.p for label, one in raw.items() if one.rows and one.rows.p is not None}
    seed_p, row_p = (
        dict(zip(ps, stats.holm(list(ps.values()), family), strict=True)) for ps in (by_seed, by_row)
    )
    return {label: replace(one, p=seed_p.get(label), rows_p=row_p.get(label)) for label, one in raw.items()}
