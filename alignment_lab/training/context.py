"""What every method's trainer is built from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..data import take_groups, max_sequence_length, count_tokens, generation_rows
from ..engine.choice import choose_engine
from ..engine.layout import Engine
from ..engine.reference import weights_digest
from ..models.packed_attention import kernel_name

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from ..config import Experiment


@dataclass(frozen=True)
class TrainContext:
    """One experiment, loaded: tokenized rows, model on its device, how it is computed, and transformers' arguments."""

    spec: Experiment
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    available: int  # training rows of the data; a run of few steps tokenizes only those that it can see
    arguments: TrainingArguments
    device: torch.device
    dtype: torch.dtype
    budget: int  # tokens per forward pass
    console: Console
    engine: Engine = field(
        default_factory=lambda: Engine(packed=False, max_tokens=0)
    )  # how rows are laid out: known when the model can be called
    weights: str = ""  # what the untouched weights are, by content: reference.digest

    def complete(self) -> TrainContext:
        """The same with engine and weights, told from a model that can be called: a sharded one only when it is wrapped.

        Says how rows are laid out, with the reason where they are padded. Every process together.
        """
        if self.weights:
            return self
        engine, reason = choose_engine(
            self.model, max(map(max_sequence_length, [*self.train, *self.heldout])), self.budget, self.device
        )
        by = f" by {name}" if (name := kernel_name(self.device)) else ""
        layout = f"packed, prompts shared{by}" if engine.packed else f"padded: {reason}"
        kept = (
            "gradient checkpointing"
            if self.arguments.activation_checkpointing
            else "no gradient checkpointing"
        )
        said = f"engine: {layout}; {engine.max_tokens} tokens a pass; {self.dtype}, {kept}".replace("torch.", "")
        self.console.print(said, highlight=False, soft_wrap=True)
        return replace(self, engine=engine, weights=weights_digest(self.model))

    @property
    def tokens_per_step(self) -> float:
        """Tokens of the rows of a global batch, on average, however the engine lays them out."""
        return self.spec.training.global_batch * sum(map(count_tokens, self.train)) / len(self.train)

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The first held-out rows: those whose loss is taken."""
        return take_groups(self.heldout, self.spec.eval.rows)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The first held-out rows whose prompts are answered; none of a model that cannot."""
        return generation_rows(self.heldout, self.spec.eval.generations) if self.spec.method.generates else []
