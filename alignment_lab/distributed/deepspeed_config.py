"""Three dials (sharding, adapter, quantization) turned into what DeepSpeed, FSDP2, peft and bitsandbytes are given.

Everything is derived from the experiment, so that no number is stated twice. Also the one way to see a sharded model whole.
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
    """What `TrainingArguments(deepspeed=...)` is given; "auto" is filled in by transformers from the arguments beside it."""
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
        zero |= {"stage3_gather_16bit_weights_on_model_save": False}  # `whole` gathers, tensor by tensor
    if parallel.offload:
        zero |= {f"offload_{what}": {"device": "cpu", "pin_memory": True} for what in ("optimizer", "param")}
    return {
        **dict.fromkeys(AUTO_KEYS, "auto"),
        "bf16": {"enabled": "auto", "check_grad_overflow": True},  # no step with a gradient that is no number
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def compile_deepspeed() -> None:
    """Build now what DeepSpeed would compile at the first run of several processes on a CPU; nothing where that is not possible."""
    import contextlib
    import os

    os.environ["DS_ACCELERATOR"] = "cpu"
    with contextlib.suppress(Exception):  # no compiler: DeepSpeed says so itself when it is asked to run
        from deepspeed.accelerator import get_accelerator

        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
