"""What every method's trainer is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data import first, questions

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..logprobs import Engine
    from ..spec import Experiment


@dataclass(frozen=True)
class Setting:
    """One experiment, loaded: tokenised rows, model on its device, how it is computed, and the keywords of TrainingArguments."""

    spec: Experiment
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    available: int  # training rows of the data; a run of few steps tokenises only those that it can see
    arguments: dict[str, Any]
    engine: Engine
    dtype: torch.dtype
    weights: str  # what these weights are, by content: reference.digest
    console: Console

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The first held-out rows: those whose loss is taken."""
        return first(self.heldout, self.spec.eval.rows)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The first held-out rows whose prompts are answered; none of a model that cannot."""
        return questions(self.heldout, self.spec.eval.generations) if self.spec.method.generates else []
