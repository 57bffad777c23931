"""The DeepSpeed configuration of a run, derived from its `parallel` settings.

Every number that TrainingArguments has stays "auto", so that none is stated twice. Imports no DeepSpeed to
build it.
"""

from __future__ import annotations

from typing import Any

from ..config import Parallel, Sharding

STAGES = {Sharding.zero1: 1, Sharding.zero2: 2, Sharding.zero3: 3}
AUTO_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


def deepspeed_config(parallel: Parallel) -> dict[str, Any] | None:
    """The value of `TrainingArguments(deepspeed=...)`, or None; transformers replaces "auto" itself."""
    if parallel.sharding not in STAGES:
        return None
    stage = STAGES[parallel.sharding]
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        # `full_state.iter_full_state` gathers, tensor by tensor
        zero |= {"stage3_gather_16bit_weights_on_model_save": False}
    if parallel.offload:
        offload = {"device": "cpu", "pin_memory": True}
        zero |= {f"offload_{part}": dict(offload) for part in ("optimizer", "param")}
    return {
        **dict.fromkeys(AUTO_KEYS, "auto"),
        "bf16": {"enabled": "auto", "check_grad_overflow": True},  # no step with a non-finite gradient
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def compile_deepspeed() -> None:
    """Compile now, where possible, what DeepSpeed would compile at the first run of several CPU processes."""
    import contextlib
    import os

    os.environ["DS_ACCELERATOR"] = "cpu"
    with contextlib.suppress(Exception):  # without a compiler DeepSpeed reports it itself when it runs
        from deepspeed.accelerator import get_accelerator

        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
