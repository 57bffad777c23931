"""What a library's error means to the user who asked for too much, in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import cluster, estimate
from .errors import disk_is_full
from .spec import Experiment

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")  # as torch says it


def no_room(folder: Path, what: str = "") -> str:
    """The disk under `folder` is full; `what` says more of it."""
    free = shutil.disk_usage(next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())).free
    return (
        f"the disk is full: {what}{free / 1e6:,.1f} MB are free in {folder}; make room there, and the same command with "
        f"hydra.run.dir={folder} goes on from the newest checkpoint."
    )


def sentence(error: BaseException, spec: Experiment, folder: Path) -> str | None:
    """What to tell the user instead of a library's error, where that is known."""
    return no_room(folder) if disk_is_full(error) else out_of_memory(error, spec)


def out_of_memory(error: BaseException, spec: Experiment) -> str | None:
    """That memory ran out, beside what the estimate said and which keys lower it; None where the error is another one."""
    if not (isinstance(error, MemoryError) or any(words in str(error) for words in WORDS)):
        return None
    accelerators = cluster.visible_accelerators()
    device, _ = estimate.here(accelerators)
    need = estimate.needs(spec, spec.parallel, device, estimate.world(spec.parallel, max(1, accelerators)))
    known = f"the estimate was {need.peak / 1e9:.1f} GB of {device.bytes / 1e9:.1f}; " if need else ""
    ways = ["training.micro_tokens (tokens of a pass)", "data.max_length", "eval.batch"]
    if not spec.training.gradient_checkpointing:
        ways.insert(1, "training.gradient_checkpointing=true")
    first = str(error).strip().partition("\n")[0][:200]
    return f"out of memory on {device.name}: {known}lower {', '.join(ways)}, or use parallel=lora or qlora. It was: {first}"
