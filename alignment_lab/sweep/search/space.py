"""The search space: the swept settings of a command line, in Hydra's notation, as Optuna's distributions.

beta=tag(log,interval(0.01,0.5))    training.global_batch=range(8,33,8)    method=dpo,ipo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer

from ...runtime.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Choice = bool | int | float | str | None


class Bounds(NamedTuple):
    """The values of a number: from low to high, both included, in steps where `step` is set."""

    low: float
    high: float
    step: float | None
    log: bool


@dataclass
class Space:
    """Settings that stay, and settings that are searched: bounds of numbers, or lists of choices."""

    fixed: list[str] = field(default_factory=list)  # overrides, as they were given
    bounds: dict[str, Bounds] = field(default_factory=dict)
    choices: dict[str, list[Choice]] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The settings that are searched."""
        return [*self.bounds, *self.choices]

    def overrides(self, point: Mapping[str, Any]) -> list[str]:
        """The overrides of the cell at a point of the space."""
        return [*self.fixed, *(f"{key}={point[key]}" for key in self.keys)]

    def corners(self) -> list[list[str]]:
        """Overrides of cells that between them take every choice and both ends of every interval.

        A problem with one of them is a problem of the search.
        """
        ends: dict[str, list[Any]] = {key: [bounds.low, bounds.high] for key, bounds in self.bounds.items()}
        ends |= self.choices
        first = {key: values[0] for key, values in ends.items()}
        others = [{**first, key: value} for key, values in ends.items() for value in values[1:]]
        return [self.overrides(point) for point in (first, *others)]

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space for Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        distributions: dict[str, BaseDistribution] = {}
        for key, (low, high, step, log) in self.bounds.items():
            if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
                distributions[key] = IntDistribution(low, high, log=log, step=step or 1)
            else:
                distributions[key] = FloatDistribution(float(low), float(high), log=log, step=step)
        return distributions | {key: CategoricalDistribution(values) for key, values in self.choices.items()}

    def to_json(self) -> dict[str, Any]:
        """The space as JSON values: searches with the same ones are the same search."""
        return {
            "fixed": sorted(self.fixed),
            "bounds": {key: list(bounds) for key, bounds in self.bounds.items()},
            "choices": {key: list(values) for key, values in self.choices.items()},
        }


def parse_space(overrides: Sequence[str], loader: Any = None) -> Space:
    """The space of these overrides; of several with the same key the last one holds.

    Raises UserError where nothing is searched, or an interval is empty.
    """
    parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
    last = {
        override.get_key_element(): (text, override) for text, override in zip(overrides, parsed, strict=True)
    }
    space = Space()
    for key, (text, override) in last.items():
        if not override.is_sweep_override():
            space.fixed.append(text)
        elif _is_numeric(override):
            space.bounds[key] = _bounds(key, override)
        else:
            values = override.sweep_iterator(transformer=Transformer.encode)
            space.choices[key] = [_to_choice(value) for value in values]
    if not space.keys:
        raise UserError(
            "hydra/sweeper=optuna: nothing is searched; give a setting an interval or choices: "
            "'beta=tag(log,interval(0.01,0.5))'."
        )
    return space


def _is_numeric(override: Override) -> bool:
    """Whether it sweeps an interval, or a range with more than one value."""
    value = override.value()
    if isinstance(value, RangeSweep):
        return len(list(override.sweep_iterator())) > 1
    return isinstance(value, IntervalSweep)


def _to_choice(value: Any) -> Choice:
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _bounds(key: str, override: Override) -> Bounds:
    """The bounds of an interval or a range; a range ends before its end, as in a grid."""
    value = override.value()
    log = "log" in value.tags
    step: float | None = None
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        low, high = value.start, value.end
    else:
        values = sorted(each if isinstance(each, int) else float(each) for each in value.range())
        low, high, step = values[0], values[-1], None if log else abs(value.step)
    if not low < high or (log and low <= 0):
        positive = ", both above 0 where it is tagged log" if log else ""
        raise UserError(f"{key}: an interval goes from a number to a larger one{positive}.")
    return Bounds(low, high, step, log)
