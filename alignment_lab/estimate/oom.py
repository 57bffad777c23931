"""What a library's error means to the user who asked for too much, in one sentence."""

from __future__ import annotations

from pathlib import Path

from .. import estimate
from ..config import Experiment
from ..runtime import hardware
from ..runtime.disk import disk_full_message, disk_is_full

OOM_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)  # as torch says it


def explain_failure(error: BaseException, spec: Experiment, folder: Path) -> str | None:
    """What to tell the user instead of a library's error, where that is known."""
    return disk_full_message(folder) if disk_is_full(error) else explain_out_of_memory(error, spec)


def explain_out_of_memory(error: BaseException, spec: Experiment) -> str | None:
    """That memory ran out, beside what the estimate said and which keys lower it; None where the error is another one."""
    if not (isinstance(error, MemoryError) or any(words in str(error) for words in OOM_PHRASES)):
        return None
    accelerators = hardware.count_accelerators()
    device, _ = estimate.local_device(accelerators)
    need = estimate.estimate_memory(
        spec, spec.parallel, device, estimate.total_processes(spec.parallel, max(1, accelerators))
    )
    known = f"the estimate was {need.peak / 1e9:.1f} GB of {device.bytes / 1e9:.1f}; " if need else ""
    ways = ["training.micro_tokens (tokens of a pass)", "data.max_length", "eval.batch"]
    if not spec.training.gradient_checkpointing:
        ways.insert(1, "training.gradient_checkpointing=true")
    first = str(error).strip().partition("\n")[0][:200]
    return f"out of memory on {device.name}: {known}lower {', '.join(ways)}, or use parallel=lora or qlora. It was: {first}"
