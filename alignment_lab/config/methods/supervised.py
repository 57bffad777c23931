"""The settings of supervised training, and of a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Format, Method, check_weight


@dataclass
class Supervised(Method):
    """Cross-entropy."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The loss, and how often the most likely token is the right one."""
        return ("loss", "mean_token_accuracy")


@dataclass
class SFT(Supervised):
    """Supervised fine-tuning: cross-entropy on the assistant's tokens only."""

    name: str = "sft"


@dataclass
class CPT(Supervised):
    """Continued pre-training: cross-entropy on every token of plain text."""

    format: ClassVar[Format] = Format.text

    name: str = "cpt"


@dataclass
class Reward(Method):
    """A reward model: a score per answer, from a head on the last token (Bradley-Terry)."""

    format: ClassVar[Format] = Format.preference
    generates: ClassVar[bool] = False

    name: str = "reward"
    centering: float = (
        0.0  # pulls the mean score of a pair to 0 (arXiv:2312.09244, with 0.01), across prompts too
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("centering", self.centering)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of TRL's reward trainer."""
        return ("loss", "accuracy", "margin", "mean_reward")
