"""Where training stands, and what a checkpoint says of it: the loop's state is what this module writes.

A checkpoint holds weights and tokenizer as plain transformers or peft loads them, the optimizer's state by
parameter name in safetensors, and in trainer_state.json everything else that a step depends on. Random states
are in torch's format, one file per process, read as data.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checkpoints import optimizer_state
from ..checkpoints.weights import load_weights, save_checkpoint_weights
from ..distributed import ranks
from ..runtime.files import read_json, write_json

if TYPE_CHECKING:
    from .loop import Trainer

STATE = "trainer_state.json"


@dataclass
class TrainState:
    """Where training stands."""

    max_steps: int
    step: int = 0  # optimizer steps, those left out for a NaN included
    num_tokens: int = 0  # TRL's: of all steps' sequences, without padding, a prompt with each of its answers


def save_state(trainer: Trainer, folder: Path) -> None:
    """Write a whole checkpoint, however the weights are sharded. Every process together."""
    trainer.backend.reshard()
    save_checkpoint_weights(trainer.model, folder)
    if ranks.is_main_process():
        trainer.context.tokenizer.save_pretrained(folder)
    trainer.hooks.heartbeat()
    trainer.backend.reshard()
    numbers = optimizer_state.save_optimizer(trainer.backend.optimizer_state(), trainer.model, folder)
    trainer.hooks.heartbeat()
    state = {
        "step": trainer.state.step,
        "max_steps": trainer.state.max_steps,
        "num_tokens": trainer.state.num_tokens,
        "optimizer": numbers,
        "scheduler": trainer.scheduler.state_dict(),
        "metrics": trainer.metrics.state_dict(),
        "objective": trainer.objective.state_dict(),
    }
    if ranks.is_main_process():
        write_json(folder / STATE, state)
    torch.save(_random_states(), _random_file(folder))


def load_state(trainer: Trainer, folder: Path) -> None:
    """Continue from a checkpoint: weights, optimizer, schedule, metrics that were not logged yet, random
    states.
    """
    state = read_json(folder / STATE)
    trainer.backend.reshard()
    weights = load_weights(trainer.model, folder)
    states = trainer.backend.optimizer_state()
    optimizer_state.load_optimizer(states, trainer.model, folder, weights, state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])
    rates = trainer.scheduler.get_last_lr()
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    trainer.state.step, trainer.state.num_tokens = state["step"], state.get("num_tokens", 0)
    trainer.metrics.load_state_dict(state["metrics"])
    trainer.objective.load_state_dict(state["objective"])
    if _random_file(folder).exists():  # of another number of processes there may be none
        _set_random_states(torch.load(_random_file(folder), weights_only=True))


def _random_file(folder: Path) -> Path:
    return folder / f"rng_state_{ranks.rank()}.pth"


def _random_states() -> dict[str, Any]:
    generator: Any = np.random.get_state()
    kind, keys, *rest = generator
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.random.get_rng_state(),
    }
    return {**states, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
