"""What a trainer writes into a checkpoint and reads back, whole however its weights are spread over processes.

Weights and the optimizer's memory by parameter name, in safetensors; everything else that a step depends on in JSON; random states in
torch's own format, read as data and never as code. transformers' Trainer decides when.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ..checkpoints import optimizer_state
from ..checkpoints.manager import CheckpointManager
from ..checkpoints.weights import load_weights, save_weights
from ..config import Sharding
from ..distributed import collectives, ranks
from ..distributed.fsdp import reshard_model
from ..distributed.full_state import count_parameters
from ..runtime.files import read_json, write_json

STATE = "lab_state.json"


class StatefulTrainer(Trainer):
    """A Trainer whose checkpoints are whole, and committed. Every process saves and loads together."""

    begun = False  # whether the untouched model was asked: only then may a checkpoint be loaded
    sharding = Sharding.none
    keeper: CheckpointManager | None = None  # of this run's checkpoints; without one there are none

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.beat: Callable[[], None] = lambda: None  # called whenever something moved
        self._sums: dict[str, list[Tensor]] = defaultdict(
            list
        )  # of every metric since the last log: [sum, count] on the device
        self._window: dict[str, Any] | None = None  # the same, of a checkpoint that was just read
        self._tr_loss: Tensor  # transformers' sum of losses since then

    # What a method adds.

    def remembered(self) -> dict[str, Any]:
        """What an objective remembers between steps, as JSON. Every process together; the first one's is kept."""
        return {}

    def remember(self, kept: dict[str, Any]) -> None:
        """Take that up again, on every process."""

    # Saving.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights (of an adapter, the adapter) and tokenizer, as plain transformers or peft loads them."""
        folder = Path(output_dir or str(self.args.output_dir))
        self.rest()
        save_weights(self.model, folder)
        if ranks.is_main_process() and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        self.beat()

    def rest(self) -> None:
        """Cut again what was gathered: ZeRO-3 fetches ahead for a pass that may not come, FSDP2's outermost unit stays whole."""
        if self.is_deepspeed_enabled and self.begun:
            self.deepspeed.empty_partition_cache()
        if self.sharding is Sharding.fsdp:
            reshard_model(self.model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers does, into a folder that is no checkpoint before all of it is there."""
        assert self.keeper is not None
        step = self.state.global_step
        with self.keeper.saving(step, count_parameters(self.model, trainable_only=True)):
            super()._save_checkpoint(model, trial)
            collectives.barrier()
            self.beat()
            if ranks.is_main_process():
                self.keeper.commit(step)
            collectives.barrier()
        self.beat()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        self.rest()
        numbers = optimizer_state.save_optimizer(self._states(), self.model, folder)
        self.beat()
        kept = {
            "numbers": numbers,
            "scheduler": self.lr_scheduler.state_dict(),
            "window": self._kept_window(),
            "method": self.remembered(),
        }
        if ranks.is_main_process():
            write_json(folder / STATE, kept)

    def _states(self) -> optimizer_state.OptimizerState:
        return (
            optimizer_state.DeepSpeedOptimizerState(self.deepspeed.optimizer)
            if self.is_deepspeed_enabled
            else optimizer_state.TorchOptimizerState(self.optimizer.optimizer)
        )

    def _kept_window(self) -> dict[str, Any]:
        """What steps since the last log came to: of all processes, so that any number of them goes on with it."""
        parts = {name: torch.stack(found).tolist() for name, found in self._sums.items()}
        everyone = collectives.all_gather((self._tr_loss.item(), parts))
        sums: dict[str, list[Any]] = defaultdict(list)
        for _, theirs in everyone:
            for name, found in theirs.items():
                sums[name] += found
        return {
            "loss": sum(loss for loss, _ in everyone) / len(everyone),
            "logged": self._globalstep_last_logged,
            "sums": sums,
        }

    # Loading.

    def _init_training_state(self, max_steps: int, *others: Any) -> tuple[int, int]:
        """As transformers has it, but how often to log and to save is what this attempt says, not what a checkpoint remembers."""
        found: tuple[int, int] = super()._init_training_state(max_steps, *others)
        self.state.compute_steps(self.args, max_steps)
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Not before the model is wrapped: see `_restore`."""

    def _restore(self, checkpoint: Path) -> None:
        """Weights, optimizer and schedule of a checkpoint, into the wrapped model."""
        kept = read_json(checkpoint / STATE)
        self.rest()
        optimizer_state.load_optimizer(
            self._states(), self.model, checkpoint, load_weights(self.model, checkpoint), kept["numbers"]
        )
        self.lr_scheduler.load_state_dict(kept["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.remember(kept["method"])
        self._window = kept["window"]

    def _run_epoch(self, **facts: Any) -> None:
        """As transformers has it; on a checkpoint of the last step no step follows."""
        self._reopen_window()
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**facts)

    def _reopen_window(self) -> None:
        """Go on with the means that were not logged yet."""
        window, self._window = self._window, None
        if window is None:
            return
        self._tr_loss = self._tr_loss + window["loss"]
        self._globalstep_last_logged = window["logged"]
        if ranks.is_main_process():
            for name, found in window["sums"].items():
                self._sums[name] += torch.tensor(found, dtype=torch.float64, device=self.args.device).unbind()
