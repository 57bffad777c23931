"""Which differences between configurations are more than noise, and which cannot be judged.

Every configuration is compared with one reference: the chosen baseline, else the best on the headline metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...config.metrics import Direction
from ...config.metrics import metric as metric_row
from ...runtime.distributions import LEVEL
from ...runtime.errors import UserError
from . import comparability, crossed, headline, stats
from .configurations import Configuration, group_by_configuration
from .crossed import SeedSample
from .frontier import Frontier, find_frontier
from .runs import RunRecord
from .stats import Estimate

SIGNIFICANCE = 1 - LEVEL
PAIRED, UNPAIRED, ONE_SEED, OWN_SCALE = "paired by seed", "seeds not paired", "one seed", "own scale"


@dataclass(frozen=True)
class Verdict:
    """One configuration against the reference, on one metric. p-values are adjusted by Holm's correction."""

    difference: Estimate | None  # over seeds, and prompts where it has a number of them; None: meaningless
    basis: str  # PAIRED, UNPAIRED, ONE_SEED or OWN_SCALE
    p: float | None = None
    row_difference: Estimate | None = None  # of these very models, over prompts
    row_p: float | None = None

    @property
    def outcome(self) -> str:
        """higher, lower, noise, or why it cannot be judged: one seed, no spread, own scale."""
        if self.difference is None or self.basis in (ONE_SEED, OWN_SCALE):
            return self.basis
        return "no spread" if self.p is None else _outcome(self.difference, self.p)

    @property
    def row_outcome(self) -> str | None:
        """higher, lower or noise on the same held-out rows; None without scores of single rows."""
        if self.row_difference is None or self.row_p is None:
            return None
        return _outcome(self.row_difference, self.row_p)


def _outcome(difference: Estimate, p: float) -> str:
    return "noise" if p >= SIGNIFICANCE else "higher" if difference.value > 0 else "lower"


Verdicts = dict[str, Verdict]  # by the label of the configuration


@dataclass(frozen=True)
class Comparison:
    """Runs, the configurations that they are seeds of, and how each compares with the reference."""

    records: list[RunRecord]
    configurations: list[Configuration]
    metrics: list[str]
    headline: str | None
    reference: Configuration | None = None
    reference_is_best: bool = False  # picked from the same numbers, and no baseline chosen beforehand
    verdicts: dict[str, Verdicts] = field(default_factory=dict)  # by metric

    @cached_property
    def warnings(self) -> list[str]:
        """What forbids comparing the runs."""
        return comparability.warnings(self.records)

    @cached_property
    def frontier(self) -> Frontier | None:
        """Reward against KL, where it was evaluated."""
        return find_frontier(self.records)

    @property
    def most_seeds(self) -> int:
        """The largest number of finished seeds of any configuration."""
        return max((len(configuration.seeds) for configuration in self.configurations), default=0)

    @property
    def headline_verdicts(self) -> Verdicts:
        """The verdicts on the headline metric."""
        return self.verdicts.get(self.headline or "", {})

    def family_size(self, metric: str) -> int:
        """For how many comparisons p-values on a metric are corrected: all pairs if the best was picked."""
        return _family_size(self.verdicts.get(metric, {}).values(), all_pairs=self.reference_is_best)


def _family_size(verdicts: Iterable[Verdict], *, all_pairs: bool) -> int:
    judged = sum(verdict.difference is not None for verdict in verdicts)
    return judged * (judged + 1) // 2 if all_pairs else judged


def compare(
    records: Sequence[RunRecord], baseline: str | None = None, metric: str | None = None
) -> Comparison:
    """Compare runs. Raises UserError where `baseline` or `metric` names nothing."""
    configurations = group_by_configuration(records)
    metrics = headline.reported_metrics(records)
    if metric is not None and metric not in metrics:
        raise UserError(
            f"--metric {metric}: no run measured it; give one of: {', '.join(metrics) or 'none measured'}."
        )
    metric = metric or headline.headline_metric(records)
    if baseline is not None:
        reference: Configuration | None = _find_baseline(configurations, baseline)
    else:
        is_ranked = metric is not None and headline.is_comparable(metric, records)
        reference = _best(configurations, metric) if metric and is_ranked else None
    picked = baseline is None
    verdicts = {
        name: _corrected(_verdicts(configurations, reference, name), all_pairs=picked)
        for name in (metrics if reference else ())
    }
    return Comparison(list(records), configurations, metrics, metric, reference, picked, verdicts)


def _find_baseline(configurations: Sequence[Configuration], baseline: str) -> Configuration:
    """The configuration with that label or run, or the only one whose label has all of these words."""
    words = set(baseline.replace(",", " ").split())
    matching = [each for each in configurations if baseline in _names(each)] or [
        each for each in configurations if words <= _label_words(each.label)
    ]
    if len(matching) == 1 and matching[0].seeds:
        return matching[0]
    if len(matching) == 1:
        reason = "did not finish"
    else:
        reason = "fits several" if matching else "no such configuration"
    choices = matching if len(matching) > 1 else configurations
    labels = "; ".join(each.label for each in choices if each.seeds)
    raise UserError(f"--baseline {baseline}: {reason}; give one of: {labels or 'none, as nothing finished'}.")


def _names(configuration: Configuration) -> set[str]:
    """What a baseline may be called: the label, and labels and folders of the runs."""
    runs = (name for record in configuration.records for name in (record.label, record.run.path.name))
    return {configuration.label, *runs}


def _label_words(label: str) -> set[str]:
    """The words of a label, `beta=0.1` as itself and as `0.1`."""
    words = label.replace(",", " ").split()
    return {*words, *(word.partition("=")[2] or word for word in words)}


def _best(configurations: Sequence[Configuration], metric: str) -> Configuration | None:
    """The configuration with the best mean, by the direction that the table of metrics has."""
    means = [(mean.value, each) for each in configurations if (mean := each.mean(metric))]
    choose = min if metric_row(metric).direction is Direction.minimize else max
    return choose(means, key=lambda pair: pair[0])[1] if means else None


def _verdicts(
    configurations: Sequence[Configuration], reference: Configuration | None, metric: str
) -> Verdicts:
    if reference is None or not reference.mean(metric):
        return {}
    others = [each for each in configurations if each is not reference and each.mean(metric)]
    return {each.label: _verdict(each, reference, metric) for each in others}


def _verdict(ours: Configuration, theirs: Configuration, metric: str) -> Verdict:
    """ours - theirs: paired by the seeds that both have, where there are two at least.

    Over seeds and prompts where both sides have their rows' scores on the same prompts, else over seeds.
    """
    if not headline.is_comparable(metric, [ours.records[0], theirs.records[0]]):
        return Verdict(None, OWN_SCALE)
    our_values, their_values = ours.values(metric), theirs.values(metric)
    shared = [seed for seed in our_values if seed in their_values]
    samples = _samples(ours, theirs, metric, shared, shared)
    by_row = _row_difference(ours, theirs, metric, shared, samples) if samples else None
    if len(shared) > 1:
        pairs = [our_values[seed] for seed in shared], [their_values[seed] for seed in shared]
        paired = crossed.paired_difference(*samples) if samples else stats.paired_difference(*pairs)
        return Verdict(_within_range(metric, paired), PAIRED, row_difference=by_row)
    samples = _samples(ours, theirs, metric, list(our_values), list(their_values))
    if samples and min(len(our_values), len(their_values)) > 1:
        unpaired = crossed.unpaired_difference(*samples)
    else:
        unpaired = stats.welch_difference(list(our_values.values()), list(their_values.values()))
    basis = UNPAIRED if unpaired.n > 1 else ONE_SEED
    return Verdict(_within_range(metric, unpaired), basis, row_difference=by_row)


def _samples(
    ours: Configuration,
    theirs: Configuration,
    metric: str,
    our_seeds: Sequence[object],
    their_seeds: Sequence[object],
) -> tuple[SeedSample, SeedSample] | None:
    """Both sides by seed and prompt, where they have the same prompts."""
    if not our_seeds or not their_seeds:
        return None
    mine, other = ours.sample(metric, our_seeds), theirs.sample(metric, their_seeds)
    return (mine, other) if mine and other and mine.prompts == other.prompts else None


def _within_range(metric: str, difference: Estimate) -> Estimate:
    """The interval of a difference of shares ends at -1 and 1."""
    if difference.ci95 is None or not metric_row(metric).is_share:
        return difference
    return replace(difference, ci95=(max(-1.0, difference.ci95[0]), min(1.0, difference.ci95[1])))


def _row_difference(
    ours: Configuration,
    theirs: Configuration,
    metric: str,
    seeds: Sequence[object],
    samples: tuple[SeedSample, SeedSample],
) -> Estimate:
    """The difference of these very models, over prompts.

    The p-value is that of an exact sign test where each has one seed, one row of each prompt, right or wrong.
    """
    difference = _within_range(metric, crossed.difference_over_prompts(*samples))
    if len(seeds) > 1:
        return difference
    mine, other = ours.prompt_sums(metric, seeds[0]), theirs.prompt_sums(metric, seeds[0])
    assert mine is not None and other is not None
    one_each = all((side.weights == 1).all() for side in (mine, other))
    differences = (mine.values - other.values).tolist()
    right_or_wrong = one_each and set(differences) <= {-1.0, 0.0, 1.0}
    return replace(difference, p=stats.sign_test(differences)) if right_or_wrong else difference


def _corrected(verdicts: Verdicts, *, all_pairs: bool) -> Verdicts:
    """The verdicts on one metric with p-values corrected for all its comparisons."""
    size = _family_size(verdicts.values(), all_pairs=all_pairs)
    seed_p = _holm({label: verdict.difference for label, verdict in verdicts.items()}, size)
    row_p = _holm({label: verdict.row_difference for label, verdict in verdicts.items()}, size)
    return {
        label: replace(verdict, p=seed_p.get(label), row_p=row_p.get(label))
        for label, verdict in verdicts.items()
    }


def _holm(differences: dict[str, Estimate | None], family_size: int) -> dict[str, float]:
    """Corrected p-values by label, where there is one."""
    p_values = {
        label: difference.p
        for label, difference in differences.items()
        if difference is not None and difference.p is not None
    }
    return dict(zip(p_values, stats.holm(list(p_values.values()), family_size), strict=True))
