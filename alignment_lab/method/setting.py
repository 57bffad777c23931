"""What every method's trainer is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..spec import Experiment


@dataclass(frozen=True)
class Setting:
    """One experiment, loaded: tokenised rows, model on its device, and the keywords of TrainingArguments."""

    spec: Experiment
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    available: int  # training rows of the data; a run of few steps tokenises only those that it can see
    arguments: dict[str, Any]
    dtype: torch.dtype
    console: Console

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The first held-out rows: those whose loss is taken."""
        return self.heldout[: self.spec.eval.rows]
