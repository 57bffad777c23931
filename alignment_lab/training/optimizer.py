"""Optimizer and learning-rate schedule, from torch's and transformers' own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Adafactor, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from ..config import Optimizer
from .schedule_notes import warmup_length

if TYPE_CHECKING:
    from ..config import Training

NO_DECAY = [
    r"bias",
    r"layernorm",
    r"rmsnorm",
    r"(?:^|\.)norm(?:$|\.)",
    r"_norm(?:$|\.)",
]  # as transformers' Trainer
OPTIMIZERS: dict[Optimizer, Callable[..., TorchOptimizer]] = {
    Optimizer.adamw_torch: lambda groups, lr: torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8),
    Optimizer.adamw_torch_fused: lambda groups, lr: torch.optim.AdamW(
        groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True
    ),
    Optimizer.adafactor: lambda groups, lr: Adafactor(
        groups, lr=lr, scale_parameter=False, relative_step=False
    ),
    Optimizer.rmsprop: lambda groups, lr: torch.optim.RMSprop(groups, lr=lr),
    Optimizer.sgd: lambda groups, lr: torch.optim.SGD(groups, lr=lr),
}


def create_optimizer(model: nn.Module, training: Training) -> TorchOptimizer:
    """The optimizer of what is trained; biases and norms do not decay, as in transformers' Trainer."""
    decaying = set(get_parameter_names(model, [nn.LayerNorm], NO_DECAY))
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [weight for name, weight in named if name in decaying],
            "weight_decay": training.weight_decay,
        },
        {"params": [weight for name, weight in named if name not in decaying], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[training.optim](groups, training.learning_rate)


def create_scheduler(optimizer: TorchOptimizer, training: Training, max_steps: int) -> LRScheduler:
    """The learning rate of each of `max_steps` steps."""
    warmup = warmup_length(training, max_steps)
    return get_scheduler(
        training.lr_scheduler_type.name,
        optimizer,
        num_warmup_steps=warmup,
        # behind a warm-up of all steps, transformers' polynomial divides by the number that is left, 0
        num_training_steps=max_steps + (warmup == max_steps),
    )
