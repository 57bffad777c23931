"""One experiment, loaded: what the loop and every method's objective are built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..config import Kernels, Sharding
from ..data import Row, generation_rows, group_starts, longest_sequence, take_groups, total_tokens
from ..distributed import ranks
from ..engine.choice import choose_engine
from ..engine.layout import Engine
from ..engine.reference import weights_digest
from ..models.fused.choice import use_kernels
from ..models.fused.patch import techniques_of
from ..models.packed_attention import kernel_name

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..config import Experiment


@dataclass
class TrainContext:
    """Tokenized rows, the model on its device, and how it is computed."""

    spec: Experiment
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train_rows: Sequence[Row]
    heldout_rows: Sequence[Row]
    available: int  # training rows of the data; a run of few steps tokenizes only those that it can see
    accelerator: Accelerator | None  # None: nothing is trained
    device: torch.device
    dtype: torch.dtype
    max_tokens: int  # of a forward pass
    gradient_checkpointing: bool
    console: Console
    heldout_pairs: Sequence[Row] = field(
        default_factory=list
    )  # of a method that trains on the chosen ones alone
    engine: Engine = field(default_factory=lambda: Engine(packed=False, max_tokens=0))
    weights_digest: str = ""  # of the initial weights, by content

    def choose_layout(self) -> None:
        """Set `engine` and `weights_digest`, once the model can be called: a sharded one only when it is
        wrapped.

        Prints how rows are laid out, with the reason where they are padded. Every process together.
        """
        if self.weights_digest:
            return
        longest = max(map(longest_sequence, (self.train_rows, self.heldout_rows, self.heldout_pairs)))
        weights = weights_digest(self.model)
        tried = self._use_kernels()
        self.engine, reason = choose_engine(
            self.model, longest, self.max_tokens, self.device, self.dtype, weights=weights
        )
        kernel = kernel_name(self.device)
        packed = "packed, prompts shared" + (f" by {kernel}" if kernel else "")
        unpacked = "one sequence at a time" if self.engine.one_by_one else "padded"
        layout = packed if self.engine.packed else f"{unpacked}: {reason}"
        kernels = techniques_of(self.model)
        if tried and not kernels:
            self.notify("kernels: none; with them log-probabilities are not those of plain transformers")
        fused = f", fused {', '.join(kernels)}" if kernels else ""
        memory = "gradient checkpointing" if self.gradient_checkpointing else "no gradient checkpointing"
        dtype = str(self.dtype).removeprefix("torch.")
        self.notify(f"engine: {layout}; {self.engine.max_tokens} tokens a pass; {dtype}, {memory}{fused}")
        if coefficient := _router_loss_coefficient(self.model):
            self.notify(
                "router: no load-balancing loss is added to this mixture of experts; TRL's trainers add "
                f"{coefficient:g} times it (router_aux_loss_coef of its config)"
            )
        self.weights_digest = weights

    def _use_kernels(self) -> list[str]:
        """Patch the model by what it may use on this device; prints what is left out. Gives what it uses."""
        if self.spec.model.kernels is Kernels.none:
            return []
        if not takes_kernels(self.spec, self.device):
            self.notify("model.kernels=fused: no effect here; it is for CUDA, with whole weights on each")
            return []
        for problem in use_kernels(self.model, self.device, self.dtype):
            self.notify(f"kernels: without {problem}")
        return techniques_of(self.model)

    def notify(self, text: str) -> None:
        """Print one line; the main process's console alone is not quiet."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @property
    def rows_per_step(self) -> float:
        """Rows of a global batch, on average: the halves of a pair are two."""
        groups = len(group_starts(self.train_rows))
        return self.spec.training.global_batch * len(self.train_rows) / groups

    @property
    def tokens_per_step(self) -> float:
        """Tokens of the rows of a global batch, on average, however the engine lays them out."""
        return self.rows_per_step * total_tokens(self.train_rows) / len(self.train_rows)

    @property
    def scored_rows(self) -> Sequence[Row]:
        """The first held-out rows: those whose loss is computed."""
        return take_groups(self.heldout_rows, self.spec.eval.rows)

    @property
    def scored_pairs(self) -> Sequence[Row]:
        """The first held-out pairs, those that a method on pairs scores."""
        return take_groups(self.heldout_pairs, self.spec.eval.rows)

    @property
    def generation_rows(self) -> list[Row]:
        """The first held-out rows whose prompts are answered; none for a model that cannot generate."""
        return (
            generation_rows(self.heldout_rows, self.spec.eval.generations)
            if self.spec.method.generates
            else []
        )


def takes_kernels(spec: Experiment, device: torch.device) -> bool:
    """Whether fused kernels are to be tried: on CUDA, where each process holds the weights whole."""
    is_sharded = spec.parallel.sharding in (Sharding.zero3, Sharding.fsdp) and ranks.world_size() > 1
    return spec.model.kernels is Kernels.fused and device.type == "cuda" and not is_sharded


def _router_loss_coefficient(model: PreTrainedModel) -> float:
    """What TRL would multiply the load-balancing loss of a mixture of experts by; 0 where it adds none."""
    config = model.config.get_text_config()
    if not hasattr(config, "output_router_logits"):
        return 0.0
    return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
