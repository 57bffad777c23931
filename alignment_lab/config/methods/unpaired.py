"""The settings of the methods on single answers that are labelled desirable or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..validation import require
from .base import Format, Method, check_beta


@dataclass
class Unpaired(Method):
    """Any of them."""

    format: ClassVar[Format] = Format.unpaired
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1  # strength of the pull towards the reference

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)


@dataclass
class KTO(Unpaired):
    """Kahneman-Tversky Optimization (arXiv:2402.01306)."""

    usual_learning_rate: ClassVar[float] = 1e-6

    name: str = "kto"
    desirable_weight: float | None = None  # null: from the counts of both labels, by the paper's rule
    undesirable_weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("desirable_weight", "undesirable_weight"):
            weight = getattr(self, key)
            holds = weight is None or 0 < weight < math.inf
            require(holds, f"method.{key}", weight, "must be above 0, or null for the balance of the labels.")


@dataclass
class BCO(Unpaired):
    """Binary Classifier Optimization (arXiv:2404.04656)."""

    usual_learning_rate: ClassVar[float] = 5e-7

    name: str = "bco"
