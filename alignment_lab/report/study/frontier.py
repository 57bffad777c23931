"""Reward against KL: what each method reaches at equal distance from the reference.

A model is a point: a gold reward, which no method trains on, against the KL divergence from the reference of
answers that the model writes, both of one evaluation. The points of a method are those of its betas and its
checkpoints. For a seed they make a curve by linear interpolation; the mean over seeds is taken at equal KL,
where every seed has points on both sides (Gao, Schulman and Hilton 2023, arXiv:2210.10760, draw a gold reward
against KL so). The initial policy, which all share, is part of no curve: between it and a method's first
point a line would lie below what bends as rewards do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ...config.metrics import SAMPLED, metric
from ...runtime.distributions import LEVEL
from . import stats
from .evaluations import evaluations_of
from .runs import RunRecord
from .settings import MISSING, SEED, canonical, format_label, short_names
from .stats import Estimate
from .values import is_finite_number, value_of

if TYPE_CHECKING:
    import numpy as np

KL = f"{SAMPLED}kl"
GOLDS = ("winrate", f"{SAMPLED}correct", "ifbench/prompt_strict")  # the first that was measured
STRENGTHS = ("beta", "method.beta")  # what moves along a method's curve, and makes no other method
SIGNIFICANCE = 1 - LEVEL
GRID = 60  # places at which seeds are averaged


@dataclass(frozen=True)
class Point:
    """One evaluated model."""

    label: str  # of its run
    step: int | None  # None: the trained model
    kl: float  # nats per answer
    gold: float


@dataclass(frozen=True)
class Curve:
    """One method: the points of each seed, and the mean of the seeds where all of them reach."""

    label: str
    by_seed: Mapping[object, list[Point]]
    start: float | None  # the gold reward of the initial policy, at KL 0

    def seed_curve(self, seed: object) -> tuple[np.ndarray, np.ndarray]:
        """The points of a seed in the order of their KL; those of one KL as their mean."""
        import numpy as np

        pairs = [(point.kl, point.gold) for point in self.by_seed[seed]]
        kl = np.unique([each for each, _ in pairs])
        return kl, np.array([np.mean([gold for other, gold in pairs if other == each]) for each in kl])

    def reach(self) -> tuple[float, float]:
        """The smallest and the largest KL that every seed has."""
        ends = [(kl[0], kl[-1]) for seed in self.by_seed for kl, _ in [self.seed_curve(seed)]]
        return max(low for low, _ in ends), min(high for _, high in ends)

    def at(self, grid: np.ndarray) -> dict[object, np.ndarray]:
        """The gold reward of each seed at these KLs."""
        import numpy as np

        return {seed: np.interp(grid, *self.seed_curve(seed)) for seed in self.by_seed}


@dataclass(frozen=True)
class Band:
    """The mean over seeds at equal KL, with its 95% interval over seeds where there are several."""

    kl: list[float]
    mean: list[float]
    low: list[float] | None
    high: list[float] | None


@dataclass(frozen=True)
class Frontier:
    """The curves of a sweep."""

    gold: str  # the name of the reward's metric
    curves: list[Curve]
    left_out: int = 0  # evaluations on other rows, or with other settings
    sentences: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What the reward is, for a reader who does not know its name."""
        return metric(self.gold).label


def band(curve: Curve) -> Band | None:
    """The mean of a curve's seeds; None where they have no KL in common."""
    import numpy as np

    low, high = curve.reach()
    if not high > low:
        return None
    grid = np.linspace(low, high, GRID)
    values = np.stack(list(curve.at(grid).values()))
    found = [stats.mean(column.tolist()) for column in values.T]
    several = len(values) > 1
    bounds = [each.ci95 or (each.value, each.value) for each in found]
    return Band(
        grid.tolist(),
        [each.value for each in found],
        [bound[0] for bound in bounds] if several else None,
        [bound[1] for bound in bounds] if several else None,
    )


def find_frontier(records: Sequence[RunRecord]) -> Frontier | None:
    """The curves of these runs, of the evaluations that measured both KL and a gold reward; None where fewer
    than two models have both.

    Of unlike sets the one with the most models counts.
    """
    found = [
        (record, entry)
        for record in records
        if record.spec
        for entry in evaluations_of(record.run)
        if _value(entry, KL) is not None
    ]
    gold = next(
        (name for name in GOLDS if sum(_value(entry, name) is not None for _, entry in found) > 1), None
    )
    if gold is None:
        return None
    measured = [(record, entry) for record, entry in found if _value(entry, gold) is not None]
    sets = [canonical([entry.get("rows_digest"), entry.get("settings")]) for _, entry in measured]
    largest = max(dict.fromkeys(sets), key=sets.count)
    same = [pair for pair, key in zip(measured, sets, strict=True) if key == largest]
    curves = _curves(same, gold)
    if not curves:
        return None
    return Frontier(gold, curves, len(measured) - len(same), list(_sentences(curves, gold)))


def _value(entry: Mapping[str, Any], name: str) -> float | None:
    value = value_of((entry["model"].get("metrics") or {}).get(name))
    return value if is_finite_number(value) else None


def _curves(measured: Sequence[tuple[RunRecord, Mapping[str, Any]]], gold: str) -> list[Curve]:
    starts = [_value(entry, gold) for _, entry in measured if entry["model"].get("is_initial")]
    start = next((value for value in starts if value is not None), None)
    keys = [
        key for key in dict.fromkeys(key for record, _ in measured for key in record.varied)
        if key not in (SEED, *STRENGTHS)
    ]  # fmt: skip
    names = short_names(keys)
    groups: dict[str, dict[object, dict[tuple[str, int | None], Point]]] = {}
    for record, entry in measured:
        if entry["model"].get("is_initial"):
            continue
        settings = {key: record.varied.get(key, MISSING) for key in keys}
        label = format_label(settings, names) or str((record.spec.get("method") or {}).get("name"))
        kl, reward = _value(entry, KL), _value(entry, gold)
        assert kl is not None and reward is not None
        point = Point(record.label, entry["model"].get("step"), kl, reward)
        of_seed = groups.setdefault(label, {}).setdefault(record.seed, {})
        of_seed.setdefault((str(record.run.path), point.step), point)  # the newest comes first
    return [
        Curve(label, {seed: list(points.values()) for seed, points in by_seed.items()}, start)
        for label, by_seed in groups.items()
    ]


def _sentences(curves: Sequence[Curve], gold: str) -> Iterator[str]:
    """Who is better at equal KL, for each pair of methods whose curves share a range of it."""
    label = metric(gold).label
    for one, other in combinations(curves, 2):
        compared = compare_at_equal_kl(one, other)
        if compared is None:
            yield (
                f"{one.label} and {other.label} have no KL in common, and are not compared; evaluate "
                "checkpoints of them (training.save_steps), or other betas."
            )
            continue
        difference, low, high = compared
        better, worse = (one, other) if difference.value >= 0 else (other, one)
        where = f"At equal KL ({low:.3g} to {high:.3g} nats per answer)"
        size = f"{abs(difference.value):.3g}"
        if not difference.value:
            yield f"{where} {one.label} and {other.label} have the same: {label}."
            continue
        if difference.ci95 is None or difference.p is None:
            note = "of one seed, which may be noise" if difference.n < 2 else "the same for every seed"
            yield f"{where} {better.label} is above {worse.label} by {size} ({label}); {note}."
            continue
        sign = 1 if difference.value >= 0 else -1
        bounds = sorted(sign * bound for bound in difference.ci95)
        measured = f"{label} +{size} [{bounds[0]:.3g}, {bounds[1]:.3g}], over {difference.n} seeds"
        if difference.p < SIGNIFICANCE:
            yield f"{where} {better.label} is better than {worse.label}: {measured}."
        else:
            yield f"{where} {better.label} and {worse.label} differ by no more than noise: {measured}."


def compare_at_equal_kl(one: Curve, other: Curve) -> tuple[Estimate, float, float] | None:
    """one - other, averaged over the KLs that all seeds of both reach, and that range; paired by the seeds
    that both have where there are two at least. None where they reach no KL in common.
    """
    import numpy as np

    ranges = one.reach(), other.reach()
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    if not high > low:
        return None
    grid = np.linspace(low, high, GRID)
    ours, theirs = (
        {seed: float(gold.mean()) for seed, gold in each.at(grid).items()} for each in (one, other)
    )
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) > 1:
        found = stats.paired_difference([ours[seed] for seed in shared], [theirs[seed] for seed in shared])
    else:
        found = stats.welch_difference(list(ours.values()), list(theirs.values()))
    return found, low, high
