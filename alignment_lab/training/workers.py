"""Processes that lay out the next batches while a step is computed, and how a batch comes from there."""

from __future__ import annotations

import io
from typing import Any

import torch

from ..runtime.signals import ignore_signals


class PickledWhole:
    """An object of many small tensors that leaves a process as one string of bytes.

    torch would open a shared file for each tensor; a few hundred passes a step exceed the limit of open
    files.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        content = io.BytesIO()
        torch.save(vars(self), content)
        return _unpickle, (type(self), content.getvalue())


def _unpickle(kind: Any, content: bytes) -> Any:
    return kind(**torch.load(io.BytesIO(content), weights_only=False))


def worker_options(count: int) -> dict[str, Any]:
    """Keywords of a DataLoader. Forked workers have the rows as they are when an epoch starts; none are sent
    to them.
    """
    if not count:
        return {}
    return {
        "num_workers": count,
        "multiprocessing_context": "fork",
        "worker_init_fn": _ignore_signals,
    }


def _ignore_signals(_: int) -> None:
    """Ctrl-C, and whatever else goes to a whole group, is for the process that trains: its step needs its
    workers, and it ends them itself.
    """
    ignore_signals()
