"""The settings of the methods on single answers that are labelled desirable or undesirable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..validation import require
from .base import IMPLICIT_METRICS, REWARD_METRICS, Format, Method, check_beta


@dataclass
class Unpaired(Method):
    """A method on single labelled answers."""

    format: ClassVar[Format] = Format.unpaired
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1  # strength of the pull towards the reference: larger stays closer

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)

    @property
    def metrics(self) -> tuple[str, ...]:
        """TRL's: those of pairs without accuracies, as answers are not paired."""
        return REWARD_METRICS

    @property
    def heldout_metrics(self) -> tuple[str, ...]:
        """With the implicit rewards; their margins and accuracies where all held-out rows are halves of
        pairs.
        """
        return (*self.metrics, *IMPLICIT_METRICS)


@dataclass
class KTO(Unpaired):
    """Kahneman-Tversky Optimization (arXiv:2402.01306)."""

    name: str = "kto"
    # null: 1, or what brings the ratio of weighted desirable to undesirable rows into the paper's [1, 4/3]
    desirable_weight: float | None = None
    undesirable_weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("desirable_weight", "undesirable_weight"):
            weight = getattr(self, key)
            in_range = weight is None or 0 < weight < math.inf
            remedy = "must be above 0, or null for the balance of the labels."
            require(in_range, f"method.{key}", weight, remedy)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Its reference point too, where there is a second prompt to estimate it from."""
        return (*super().metrics, "kl")


@dataclass
class BCO(Unpaired):
    """Binary Classifier Optimization (arXiv:2404.04656, there with a beta of 0.01)."""

    name: str = "bco"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The shift too: the mean reward over all earlier steps."""
        return (*super().metrics, "shift")
