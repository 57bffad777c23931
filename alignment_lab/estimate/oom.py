"""Explains in one sentence a library's error that means that memory or disk ran out."""

from __future__ import annotations

from pathlib import Path

from .. import estimate
from ..config import Experiment
from ..runtime import hardware
from ..runtime.disk import disk_full_message, disk_is_full
from .devices import GB

OOM_PHRASES = (  # as torch and its libraries word it
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def explain_failure(error: BaseException, spec: Experiment, folder: Path) -> str | None:
    """The sentence to show instead of a full disk's or an out-of-memory error; None for any other error."""
    return disk_full_message(folder) if disk_is_full(error) else explain_out_of_memory(error, spec)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out, on an accelerator or on the host."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in OOM_PHRASES)


def explain_out_of_memory(error: BaseException, spec: Experiment) -> str | None:
    """That memory ran out, what the estimate was, and which keys lower it; None for any other error."""
    if not is_out_of_memory(error):
        return None
    accelerators = hardware.count_accelerators()
    device, _ = estimate.local_device(accelerators)
    processes = estimate.total_processes(spec.parallel, max(1, accelerators))
    memory_estimate = estimate.estimate_memory(spec, spec.parallel, device, processes)
    estimated = (
        f"the estimate was {memory_estimate.peak / GB:.1f} GB of {device.bytes / GB:.1f}; "
        if memory_estimate
        else ""
    )
    keys = ["training.micro_tokens (tokens of a pass)", "data.max_length", "eval.batch"]
    if not spec.training.gradient_checkpointing:
        keys.insert(1, "training.gradient_checkpointing=true")
    first_line = str(error).strip().partition("\n")[0][:200]
    return (
        f"out of memory on {device.name}: {estimated}lower {', '.join(keys)}, or use parallel=lora or qlora. "
        f"It was: {first_line}"
    )
