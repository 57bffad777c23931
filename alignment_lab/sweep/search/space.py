"""What is searched: the swept settings of a command line, in Hydra's words, as optuna's distributions.

beta=tag(log,interval(0.01,0.5))    training.global_batch=range(8,33,8)    method=dpo,ipo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer

from ...runtime.errors import UserError


@dataclass
class Space:
    """Settings that stay, and settings that are searched: bounds of numbers, or the values there are."""

    fixed: list[str] = field(default_factory=list)  # overrides as they are
    bounds: dict[str, tuple[float, float, float | None, bool]] = field(
        default_factory=dict
    )  # low, high, step, log
    choices: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """What is searched."""
        return [*self.bounds, *self.choices]

    def words(self, point: Mapping[str, Any]) -> list[str]:
        """The overrides of a cell."""
        return [*self.fixed, *(f"{key}={point[key]}" for key in self.keys)]

    def corners(self) -> list[list[str]]:
        """Cells that between them take every choice and both ends of every interval: where one is wrong, the search is."""
        ends: dict[str, list[Any]] = {
            key: [low, high] for key, (low, high, _, _) in self.bounds.items()
        } | self.choices
        first = {key: values[0] for key, values in ends.items()}
        others = [{**first, key: value} for key, values in ends.items() for value in values[1:]]
        return [self.words(point) for point in (first, *others)]

    def distributions(self) -> dict[str, Any]:
        """For optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, Any] = {}
        for key, (low, high, step, log) in self.bounds.items():
            if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
                found[key] = IntDistribution(low, high, log=log, step=step or 1)
            else:
                found[key] = FloatDistribution(float(low), float(high), log=log, step=step)
        return found | {key: CategoricalDistribution(values) for key, values in self.choices.items()}

    def plain(self) -> dict[str, Any]:
        """As JSON: two searches with the same are one."""
        return {
            "fixed": sorted(self.fixed),
            "bounds": {key: list(found) for key, found in self.bounds.items()},
            "choices": {key: list(values) for key, values in self.choices.items()},
        }


def parse_space(words: Sequence[str], loader: Any = None) -> Space:
    """From overrides; of several with the same key the last one holds. Raises UserError where nothing is searched."""
    last = {
        one.get_key_element(): (word, one)
        for word, one in zip(words, OverridesParser.create(loader).parse_overrides(list(words)), strict=True)
    }
    found = Space()
    for key, (word, one) in last.items():
        if not one.is_sweep_override():
            found.fixed.append(word)
        elif isinstance(one.value(), IntervalSweep) or (
            isinstance(one.value(), RangeSweep) and _numbers(one)
        ):
            found.bounds[key] = _bounds(key, one)
        else:
            found.choices[key] = [
                _plain(value) for value in one.sweep_iterator(transformer=Transformer.encode)
            ]
    if not found.keys:
        raise UserError(
            "hydra/sweeper=optuna: nothing is searched; give a setting an interval or choices: 'beta=tag(log,interval(0.01,0.5))'."
        )
    return found


def _numbers(override: Override) -> bool:
    return len(list(override.sweep_iterator())) > 1


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _bounds(key: str, override: Override) -> tuple[float, float, float | None, bool]:
    """Low, high, step, log. A range ends before its end, as in a grid."""
    value = override.value()
    log = "log" in value.tags
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        low, high, step = value.start, value.end, None
    else:
        steps = sorted(float(one) if not isinstance(one, int) else one for one in value.range())
        low, high, step = steps[0], steps[-1], None if log else abs(value.step)
    if not low < high or (log and low <= 0):
        raise UserError(
            f"{key}: an interval goes from a number to a larger one{', both above 0 where it is tagged log' if log else ''}."
        )
    return low, high, step, log
