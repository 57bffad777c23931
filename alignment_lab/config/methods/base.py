"""What every method has, and the ranges that several share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from ..metrics import IMPLICIT
from ..validation import require

Format = Enum("Format", ["conversation", "text", "preference", "unpaired", "prompt"])
Divergence = Enum("Divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
REWARD_METRICS = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected",
)  # fmt: skip
IMPLICIT_METRICS = tuple(f"{IMPLICIT}{name}" for name in ("chosen", "rejected", "margins", "accuracies"))


@dataclass
class Method:
    """Facts of a method are class variables and properties; what a user sets is a field.

    Its learning rate is a setting of training: conf/method/NAME.yaml sets it.
    """

    format: ClassVar[Format] = Format.conversation  # the data that it needs
    needs_reference: ClassVar[bool] = False  # whether it compares the policy with a reference model
    couples_rows: ClassVar[bool] = False  # whether a row's loss depends on the other rows of its global batch
    generates: ClassVar[bool] = True  # whether the trained model can generate text

    name: str = "method"

    def __post_init__(self) -> None:
        """Refuse what is out of range; a subclass checks its own fields after calling this."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What its trainer computes of a batch: names in the table of metrics."""
        return ("loss",)

    @property
    def heldout_metrics(self) -> tuple[str, ...]:
        """What is measured of held-out rows: the same, and what only a comparison with the initial policy
        tells.
        """
        return self.metrics


def check_beta(value: float, at_zero: str = "nothing holds the policy to its reference") -> None:
    """Require a finite value above 0; `at_zero` says what would happen at 0."""
    require(0 < value < math.inf, "method.beta", value, f"must be above 0: at 0 {at_zero}.")


def check_label_smoothing(value: float) -> None:
    """Require a share of flipped labels."""
    carries_signal = 0 <= value < 0.5
    remedy = "must lie in [0, 0.5): at 0.5 the labels carry no signal."
    require(carries_signal, "method.label_smoothing", value, remedy)


def check_weight(key: str, value: float) -> None:
    """Require a finite weight of a term of the loss; 0 leaves it out."""
    require(0 <= value < math.inf, f"method.{key}", value, "must be 0 or more; 0 leaves the term out.")
