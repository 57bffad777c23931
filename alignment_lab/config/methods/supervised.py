"""The settings of training on right answers, and of a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Format, Method, check_weight


@dataclass
class SFT(Method):
    """Supervised fine-tuning: cross-entropy on the assistant's tokens only."""

    name: str = "sft"


@dataclass
class CPT(Method):
    """Continued pre-training: cross-entropy on every token of plain text."""

    format: ClassVar[Format] = Format.text

    name: str = "cpt"


@dataclass
class Reward(Method):
    """A reward model: a score per answer, from a head on the last token (Bradley-Terry)."""

    format: ClassVar[Format] = Format.preference
    usual_learning_rate: ClassVar[float] = 1e-5
    generates: ClassVar[bool] = False

    name: str = "reward"
    centering: float = 0.0  # draws the mean score of a pair to 0 (arXiv:2312.09244)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("centering", self.centering)
