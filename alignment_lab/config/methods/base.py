"""What every method has, and the ranges that several share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from ..validation import require

Format = Enum("Format", ["conversation", "text", "preference", "unpaired"])
Divergence = Enum("Divergence", ["reverse_kl", "forward_kl", "js", "alpha"])


@dataclass
class Method:
    """What a method is stands in class variables; what a user sets, in fields."""

    format: ClassVar[Format] = Format.conversation  # the data that it needs
    needs_reference: ClassVar[bool] = False  # whether it compares the policy with the model as it stood
    usual_learning_rate: ClassVar[float] = 2e-5
    couples_rows: ClassVar[bool] = False  # whether a row's loss depends on which rows share its global batch
    generates: ClassVar[bool] = True  # whether what it trains can be asked for text

    name: str = "method"

    def __post_init__(self) -> None:
        """Refuse what is out of range; who has fields of their own checks them after calling this."""


def check_beta(value: float, at_zero: str = "nothing holds the policy to its reference") -> None:
    """Above 0; `at_zero` says what would happen there."""
    require(0 < value < math.inf, "method.beta", value, f"must be above 0: at 0 {at_zero}.")


def check_smoothing(value: float) -> None:
    """A share of flipped labels."""
    require(
        0 <= value < 0.5,
        "method.label_smoothing",
        value,
        "must lie in [0, 0.5): at 0.5 the labels carry no signal.",
    )


def check_weight(key: str, value: float) -> None:
    """A term's weight, which 0 leaves out."""
    require(0 <= value < math.inf, f"method.{key}", value, "must be 0 or more; 0 leaves the term out.")
