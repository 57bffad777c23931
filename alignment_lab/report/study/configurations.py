"""Runs that differ in nothing but training.seed, as one configuration with a mean over its seeds.

Only finished runs count. Differences between configurations are judged in comparison.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from ...config.metrics import metric as metric_row
from ...runtime.cluster_means import influence, share_interval
from . import crossed, stats
from .crossed import SeedSample
from .row_scores import PromptSums, prompt_sums
from .runs import RunRecord, all_varied_keys
from .settings import SEED, format_label, short_names
from .stats import Estimate
from .values import MetricValue, interval_of, is_finite_number, n_of, value_of

When = Literal["before", "after"]  # training


@dataclass(frozen=True)
class Configuration:
    """One row of the comparison: its settings, every run that has them, and the finished ones by seed."""

    label: str
    settings: dict[str, object]
    records: list[RunRecord]
    by_seed: dict[object, RunRecord] = field(default_factory=dict)
    repeats: int = 0  # finished runs whose seed another one has too: the newest counts

    @cached_property
    def _means(self) -> dict[tuple[str, When], Estimate | None]:
        return {}

    @cached_property
    def _prompt_sums(self) -> dict[tuple[str, object], PromptSums | None]:
        return {}

    @cached_property
    def _samples(self) -> dict[tuple[object, ...], SeedSample | None]:
        return {}

    @property
    def seeds(self) -> list[object]:
        """The seeds of the finished runs, in order."""
        return list(self.by_seed)

    def values(self, metric: str, when: When = "after") -> dict[object, float]:
        """The metric by seed, where it was measured."""
        values = {
            seed: value_of(record.after(metric) if when == "after" else record.before(metric))
            for seed, record in self.by_seed.items()
        }
        return {seed: value for seed, value in values.items() if is_finite_number(value)}

    def mean(self, metric: str, when: When = "after") -> Estimate | None:
        """The mean over seeds with its interval; None where nothing was measured.

        The interval is over seeds and prompts where each run has its rows' scores, else over seeds alone.
        """
        if (metric, when) not in self._means:
            self._means[metric, when] = self._mean(metric, when)
        return self._means[metric, when]

    def _mean(self, metric: str, when: When) -> Estimate | None:
        values = self.values(metric, when)
        if not values:
            return None
        sample = self.sample(metric, list(values)) if when == "after" and len(values) > 1 else None
        found = crossed.mean(sample) if sample else stats.mean(list(values.values()))
        return replace(found, ci95=_interval_within_range(metric, found))

    def prompt_sums(self, metric: str, seed: object) -> PromptSums | None:
        """The scores of one seed by prompt, where its run has them."""
        if (metric, seed) not in self._prompt_sums:
            self._prompt_sums[metric, seed] = prompt_sums(self.by_seed[seed], metric)
        return self._prompt_sums[metric, seed]

    def sample(self, metric: str, seeds: Sequence[object]) -> SeedSample | None:
        """The seeds' errors by prompt; None where a run lacks its rows' scores, or has other prompts."""
        key = (metric, *seeds)
        if key not in self._samples:
            self._samples[key] = self._sample(metric, seeds)
        return self._samples[key]

    def _sample(self, metric: str, seeds: Sequence[object]) -> SeedSample | None:
        sums = [self.prompt_sums(metric, seed) for seed in seeds]
        known = [each for each in sums if each is not None and len(each.prompts) > 1]
        if not known or len(known) < len(sums) or any(each.prompts != known[0].prompts for each in known):
            return None
        return crossed.seed_sample([influence(each.values, each.weights) for each in known], known[0].prompts)

    def measured(self, metric: str) -> MetricValue | None:
        """The value to show: the mean over seeds, or a single run's own value with its interval over rows."""
        mean = self.mean(metric)
        if mean is None:
            return None
        if mean.n > 1:
            return {"value": mean.value, "ci95": mean.ci95, "n": mean.n, "unit": "seeds"}
        (seed,) = self.values(metric)
        after = self.by_seed[seed].after(metric)
        return {"value": mean.value, "ci95": interval_of(after), "n": n_of(after), "unit": "rows"}


def _interval_within_range(metric: str, mean: Estimate) -> tuple[float, float] | None:
    """The interval, that of a share within [0, 1], which Student's does not know.

    Over prompts it is made as that of one run is, over seeds alone it is cut off.
    """
    if not metric_row(metric).is_share or not 0 <= mean.value <= 1:
        return mean.ci95
    if mean.prompts:
        half_width = (mean.ci95[1] - mean.ci95[0]) / 2 if mean.ci95 else 0.0
        return share_interval(mean.value, half_width, mean.prompts, math.inf)
    return mean.ci95 and (max(0.0, mean.ci95[0]), min(1.0, mean.ci95[1]))


def group_by_configuration(records: Sequence[RunRecord]) -> list[Configuration]:
    """The runs grouped by every setting that differs except the seed, in the order of the records."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        settings = _without_seed(record.varied)
        key = json.dumps(settings, sort_keys=True, default=str) if record.spec else str(record.run.path)
        groups.setdefault(key, []).append(record)
    names = short_names([key for key in all_varied_keys(records) if key != SEED])
    finished = [record for record in records if record.has_results]
    distinguishing = {key for key in names if len({repr(record.varied.get(key)) for record in finished}) > 1}
    configurations = [_configuration(members, names, distinguishing) for members in groups.values()]
    labels = [configuration.label for configuration in configurations]
    return [
        configuration
        if labels.count(configuration.label) == 1
        else replace(configuration, label=configuration.records[0].label)
        for configuration in configurations
    ]


def _without_seed(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key != SEED}


def _configuration(
    members: list[RunRecord], names: Mapping[str, str], distinguishing: AbstractSet[str]
) -> Configuration:
    """Label by the settings that differ among finished runs; by all that differ where no member finished."""
    settings = _without_seed(members[0].varied)
    finished = sorted(
        (record for record in members if record.has_results),
        key=lambda record: str(record.state.get("ended") or ""),
    )
    newest = {record.seed: record for record in finished}
    by_seed = dict(sorted(newest.items(), key=lambda item: _seed_order(item[0])))
    in_label = {key: value for key, value in settings.items() if key in distinguishing or not by_seed}
    fallback = members[0].label if len(members) == 1 else "every seed"
    label = format_label(in_label, names) or fallback
    return Configuration(label, settings, members, by_seed, repeats=len(finished) - len(by_seed))


def _seed_order(seed: object) -> tuple[bool, int]:
    """Integers in order, then everything else."""
    return (False, seed) if isinstance(seed, int) else (True, 0)
