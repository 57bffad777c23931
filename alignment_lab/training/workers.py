"""Processes that lay out the next batches while a step is computed, and how a batch comes from there."""

from __future__ import annotations

import io
import signal
from typing import Any

import torch


class PickledWhole:
    """A thing of many small tensors that leaves a process as one string of bytes.

    torch would open a shared file for each of the tensors, and with a few hundred passes a step that is more than a process may open.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        content = io.BytesIO()
        torch.save(vars(self), content)
        return _unpacked, (type(self), content.getvalue())


def _unpacked(kind: Any, content: bytes) -> Any:
    return kind(**torch.load(io.BytesIO(content), weights_only=False))


def worker_options(count: int) -> dict[str, Any]:
    """A DataLoader's settings. Forked, workers have the rows as they are when an epoch starts, and no rows are sent to them."""
    return (
        {"num_workers": count, "multiprocessing_context": "fork", "worker_init_fn": _begin} if count else {}
    )


def _begin(_: int) -> None:
    """Ctrl-C is for the process that trains: it ends its workers. Whatever else that one does with signals is not for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
