"""transformers' TrainingArguments of an experiment. Nothing that matters is left to a library's default."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from ..config import Experiment
from ..distributed import ranks
from ..distributed.deepspeed_config import deepspeed_config
from ..runtime.errors import UserError
from ..runtime.run_directory import RunDirectory


def arguments(
    spec: Experiment, run: RunDirectory, device: torch.device, dtype: torch.dtype
) -> TrainingArguments:
    """One item of the data loader is one global batch, so accumulation happens inside of a step: see trainer.LabTrainer.

    Made before the model is loaded and kept as long as it: while it lives, transformers cuts what it loads under ZeRO-3.
    """
    alone = ranks.world_size() == 1  # there is nobody to cut anything with
    if alone and spec.parallel.offload:
        raise UserError(
            "parallel.offload=true: works from two processes on; use parallel=qlora or parallel=lora on one accelerator."
        )
    deepspeed = None if alone else deepspeed_config(spec.parallel)
    if deepspeed:
        from deepspeed.comm import init_distributed

        init_distributed(
            "gloo" if device.type == "cpu" else "nccl", auto_mpi_discovery=False
        )  # it takes the processes that have met
    return TrainingArguments(
        **_keywords(spec, run, device, dtype), **({"deepspeed": deepspeed} if deepspeed else {})
    )


def _keywords(
    spec: Experiment, run: RunDirectory, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    training = spec.training
    same_name = (
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "seed",
    )
    return {
        **{name: getattr(training, name) for name in same_name},
        "output_dir": str(run.partial),
        "per_device_train_batch_size": max(1, training.global_batch // ranks.world_size()),
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": training.lr_scheduler_type.name,
        "optim": training.optim.name,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "dataloader_num_workers": training.dataloader_num_workers,
        "dataloader_pin_memory": False,  # a batch is a few thousand integers
        "logging_steps": training.logging_steps,
        "logging_nan_inf_filter": False,  # a NaN is shown, not replaced by the running mean
        "save_strategy": "steps" if training.save_steps else "no",
        "save_steps": training.save_steps or 1,
        "save_total_limit": None,  # only committed checkpoints count: checkpoint.retain
        "eval_strategy": "no",  # EvaluateEvery asks for it: our rows are no padded Dataset
        "bf16": dtype is torch.bfloat16,
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,  # what a buffer holds follows from the config
        **({"ddp_backend": "gloo"} if device.type == "cpu" and ranks.is_launched() else {}),
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
