"""The eval group: what is measured before and after training, and what a search optimizes."""

from __future__ import annotations

from dataclasses import dataclass

from ..metrics import Direction
from ..validation import require_nonnegative, require_positive


@dataclass
class Eval:
    """What is measured before and after training."""

    rows: int = 64  # held-out rows whose metrics are computed; 0: none
    generations: int = 64  # held-out prompts that are answered; 0: none
    max_new_tokens: int = 64
    batch: int = 32  # prompts answered at once
    objective: str | None = None  # metric that a search optimizes; null: preference accuracy, else eval_loss
    direction: Direction | None = None  # which way is better; null: as in the table of metrics

    def __post_init__(self) -> None:
        require_nonnegative("eval", self, "rows", "generations")
        require_positive("eval", self, "max_new_tokens", "batch")
