"""DeepSpeed's settings of an experiment, derived from it so that no number is stated twice."""

from __future__ import annotations

from typing import Any

from ..config import Parallel, Sharding

STAGES = {Sharding.zero1: 1, Sharding.zero2: 2, Sharding.zero3: 3}


def deepspeed_config(
    parallel: Parallel, *, rows_per_process: int, max_grad_norm: float, bf16: bool
) -> dict[str, Any] | None:
    """DeepSpeed's config; None where the sharding is not ZeRO. accelerate fills in "auto" from the model's hidden size."""
    if parallel.sharding not in STAGES:
        return None
    stage = STAGES[parallel.sharding]
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    zero["reduce_bucket_size"] = "auto"
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        zero["stage3_gather_16bit_weights_on_model_save"] = False  # full_state gathers, tensor by tensor
    if parallel.offload:
        zero |= {f"offload_{what}": {"device": "cpu", "pin_memory": True} for what in ("optimizer", "param")}
    return {
        "train_micro_batch_size_per_gpu": rows_per_process,  # passes of a step are ours to count
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},  # no step with a gradient that is not finite
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def compile_deepspeed() -> None:
    """Build now what DeepSpeed would compile at the first run of several processes on a CPU, where that is possible."""
    import contextlib
    import os

    os.environ["DS_ACCELERATOR"] = "cpu"
    with contextlib.suppress(Exception):  # no compiler: DeepSpeed says so itself when it is asked to run
        from deepspeed.accelerator import get_accelerator

        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
