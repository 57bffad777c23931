"""The training group. Names are those of transformers' TrainingArguments, but for the two batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ..validation import require, require_nonnegative, require_positive

Optimizer = Enum("Optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor", "rmsprop", "sgd"])
OnNonfinite = Enum("OnNonfinite", ["stop", "skip"])
HubStrategy = Enum("HubStrategy", ["end", "every_save"])
Scheduler = Enum(
    "Scheduler", ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"]
)


@dataclass
class Training:
    """The optimization, and what is logged, saved and evaluated while it runs."""

    learning_rate: float  # its default is in the method's option, conf/method/NAME.yaml
    num_train_epochs: float = 1.0
    max_steps: int = -1  # above 0 it overrides num_train_epochs
    # rows per optimizer step, over all processes and accumulation; a pair is one row for every method
    global_batch: int = 8
    micro_tokens: int | None = None  # tokens per forward pass, changes no loss; null: by device and memory
    lr_scheduler_type: Scheduler = Scheduler.cosine
    warmup_steps: float = 0.1  # below 1: a share of all steps
    optim: Optimizer = Optimizer.adamw_torch_fused
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool | None = None  # null: where the estimate says that memory would not suffice
    seed: int = 42
    logging_steps: int = 1
    eval_steps: int | None = None  # null: before and after training only
    save_steps: int | None = None  # null: no checkpoint during training
    save_total_limit: int = 2
    dataloader_num_workers: int = 0  # processes that lay out the next batches; 0: the training process does
    # a NaN or infinite loss or gradient: end the run, or skip the step
    on_nonfinite: OnNonfinite = OnNonfinite.stop
    max_nonfinite: int = 5  # skipped steps in a row before the run ends
    watchdog_minutes: float | None = 30.0  # without progress: dump tracebacks and end the run; null: never
    push_to_hub: bool = False  # upload the model to the Hub, without holding training up
    hub_model_id: str | None = None  # org/name; null: the experiment's name, of the user who is logged in
    hub_strategy: HubStrategy = HubStrategy.every_save  # every checkpoint and the final model, or that alone
    hub_private_repo: bool = True
    hub_revision: str | None = None  # a branch; null: the repository's own, of a sweep's cell one of its name

    def __post_init__(self) -> None:
        self._check_steps()
        rate, decay, minutes = self.learning_rate, self.weight_decay, self.watchdog_minutes
        require(0 < rate < math.inf, "training.learning_rate", rate, "must be above 0, and finite.")
        polynomial_end = 1e-7  # of transformers' schedule, which refuses to end higher than it starts
        require(
            self.lr_scheduler_type is not Scheduler.polynomial or rate > polynomial_end,
            "training.learning_rate",
            rate,
            "lr_scheduler_type=polynomial ends at 1e-07; set more, or training.lr_scheduler_type=linear.",
        )
        require(decay < math.inf, "training.weight_decay", decay, "must be 0 or more, and finite.")
        require(
            minutes is None or minutes > 0,
            "training.watchdog_minutes",
            minutes,
            "must be above 0, or null for no watchdog.",
        )
        numpy_limit = "must be below 2**32: numpy takes no larger one."
        require(self.seed < 2**32, "training.seed", self.seed, numpy_limit)
        nonnegative = ("weight_decay", "max_grad_norm", "seed", "dataloader_num_workers", "max_nonfinite")
        require_nonnegative("training", self, *nonnegative)

    def _check_steps(self) -> None:
        """How many steps there are, of how many rows, and what happens between them."""
        epochs, steps, warmup = self.num_train_epochs, self.max_steps, self.warmup_steps
        require(0 < epochs < math.inf, "training.num_train_epochs", epochs, "must be above 0, and finite.")
        require(
            steps == -1 or steps > 0, "training.max_steps", steps, "must be above 0, or -1 for whole epochs."
        )
        require(
            0 <= warmup < math.inf,
            "training.warmup_steps",
            warmup,
            "must be 0 or more; below 1 it is a share of all steps.",
        )
        batches = ("global_batch", "micro_tokens")
        intervals = ("logging_steps", "eval_steps", "save_steps", "save_total_limit")
        require_positive("training", self, *batches, *intervals)
