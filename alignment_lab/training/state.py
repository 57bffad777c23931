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

from .. import cluster, parallel
from ..artifacts import read_json, write_json
from ..spec import Sharding
from . import states
from .keeper import Keeper

STATE = "lab_state.json"


class StatefulTrainer(Trainer):
    """A Trainer whose checkpoints are whole, and committed. Every process saves and loads together."""

    begun = False  # whether the untouched model was asked: only then may a checkpoint be loaded
    sharding = Sharding.none
    keeper: Keeper | None = None  # of this run's checkpoints; without one there are none

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.beat: Callable[[], None] = lambda: None  # called whenever something moved
        self._sums: dict[str, list[Tensor]] = defaultdict(list)  # of every metric since the last log: [sum, count] on the device
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
        if cluster.is_first() and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        self.beat()

    def rest(self) -> None:
        """Cut again what was gathered: ZeRO-3 fetches ahead for a pass that may not come, FSDP2's outermost unit stays whole."""
        if self.is_deepspeed_enabled and self.begun:
            self.deepspeed.empty_partition_cache()
        if self.sharding is Sharding.fsdp:
            parallel.reshard(self.model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers does, into a folder that is no checkpoint before all of it is there."""
        assert self.keeper is not None
        step = self.state.global_step
        with self.keeper.saving(step, parallel.count(self.model, trained=True)):
            super()._save_checkpoint(model, trial)
            cluster.barrier()
            self.beat()
            if cluster.is_first():
                self.keeper.commit(step)
            cluster.barrier()
        self.beat()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        self.rest()
        numbers = states.save(self._states(), self.model, folder)
        self.beat()
        kept = {"numbers": numbers, "scheduler": self.lr_scheduler.state_dict(), "window": self._kept_window(), "method": self.remembered()}
        if cluster.is_first():
            write_json(folder / STATE, kept)

    def _states(self) -> states.States:
        return states.Zero(self.deepspeed.optimizer) if self.is_deepspeed_enabled else states.Plain(self.optimizer.optimizer)

    def _kept_window(self) -> dict[str, Any]:
        """What steps since the last log came to: of all processes, so that any number of them goes on with it."""
        parts = {name: torch.stack(found).tolist() for name, found in self._sums.items()}
        everyone = cluster.gathered((self._tr_loss.item(), parts))
        sums: dict[str, list[Any]] = defaultdict(list)
        for _, theirs in everyone:
            for name, found in theirs.items():
                sums[name] += found
        return {"loss": sum(loss for loss, _ in everyone) / len(everyone), "logged": self._globalstep_last_logged, "sums": sums}

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
        states.load(self._states(), self.model, checkpoint, load_weights(self.model, checkpoint), kept["numbers"])
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
        if cluster.is_first():
            for name, found in window["sums"].items():
                self._sums[name] += torch.tensor(found, dtype=torch.float64, device=self.args.device).unbind()


def save_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """safetensors and config of a model, or of its adapter. Every process together; the first one writes, and has the state.

    Raises RunError where a weight is not finite.
    """
    adapter = hasattr(model, "peft_config")
    trained = parallel.trained(model) if adapter else set()
    state = {}
    for name, tensor in parallel.whole(model, wanted=lambda name: not adapter or name in trained):
        states.finite(name, tensor)
        if cluster.is_first():
            state[name] = tensor
    if cluster.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=state, **({"save_embedding_layers": False} if adapter else {}))
    cluster.barrier()
    return state


def load_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What `save_weights` wrote, by the model's own names."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*model*.safetensors")):
        found |= load_file(file)
    if hasattr(model, "peft_config"):
        names = parallel.trained(model)
        short = {name.replace(".default", "").replace(".modules_to_save", ""): name for name in names}
        found = {short.get(name, name): tensor for name, tensor in found.items()}
    return found
