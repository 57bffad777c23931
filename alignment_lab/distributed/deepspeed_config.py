"""The DeepSpeed configuration of a run, derived from the experiment so that no number is stated twice.

Refuses to know the model: accelerate fills in what depends on it.
"""

from __future__ import annotations

from typing import Any

from ..config import Parallel, Sharding

STAGES = {Sharding.zero1: 1, Sharding.zero2: 2, Sharding.zero3: 3}


def deepspeed_config(
    parallel: Parallel, *, rows_per_process: int, max_grad_norm: float, bf16: bool
) -> dict[str, Any] | None:
    """DeepSpeed's config; None where the sharding is not ZeRO.

    accelerate replaces "auto" by values for the model's hidden size.
    """
    if parallel.sharding not in STAGES:
        return None
    stage = STAGES[parallel.sharding]
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    zero["reduce_bucket_size"] = "auto"
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        zero["stage3_gather_16bit_weights_on_model_save"] = False  # iter_full_state gathers, tensor by tensor
    if parallel.offload:
        zero |= {f"offload_{part}": {"device": "cpu", "pin_memory": True} for part in ("optimizer", "param")}
    return {
        "train_micro_batch_size_per_gpu": rows_per_process,  # the loop itself counts the passes of a step
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},  # no step with a non-finite gradient
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
