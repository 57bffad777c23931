"""The settings of every method. What a method is stands in class variables; what a user sets, in fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from .check import require

Format = Enum("Format", ["conversation", "text", "preference", "unpaired"])


@dataclass
class Method:
    """What every method has: the data that it needs, whether it needs a reference, and its usual learning rate."""

    format: ClassVar[Format] = Format.conversation
    usual_learning_rate: ClassVar[float] = 2e-5

    name: str = "method"


@dataclass
class SFT(Method):
    """Supervised fine-tuning: cross-entropy on the assistant's tokens only."""

    name: str = "sft"


@dataclass
class DPO(Method):
    """Direct Preference Optimization (arXiv:2305.18290); the reference is the initial policy."""

    format: ClassVar[Format] = Format.preference
    usual_learning_rate: ClassVar[float] = 1e-6

    name: str = "dpo"
    beta: float = 0.1  # strength of the pull towards the reference
    label_smoothing: float = 0.0  # assumed share of flipped labels, in [0, 0.5)

    def __post_init__(self) -> None:
        require(0 < self.beta < math.inf, "method.beta", self.beta, "must be above 0: at 0 nothing holds the policy to its reference.")
        require(
            0 <= self.label_smoothing < 0.5,
            "method.label_smoothing",
            self.label_smoothing,
            "must lie in [0, 0.5): at 0.5 the labels carry no signal.",
        )


METHODS: dict[str, type[Method]] = {"sft": SFT, "dpo": DPO}
