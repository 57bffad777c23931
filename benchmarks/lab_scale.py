"""The lab's side of many rows: read and told apart from bad ones, tokenized, packed for an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console

from alignment_lab import data
from alignment_lab.actions import tokenized
from alignment_lab.engine.layout import Engine
from alignment_lab.methods.preference import pair_sequences
from alignment_lab.models.locate import locate_model
from alignment_lab.training.sampler import GlobalBatchSampler

from .cases import Job
from .lab import compose_experiment

T = TypeVar("T")
PASS_TOKENS = 16_384


def prepare(job: Job) -> dict[str, Any]:
    """Seconds of each stage for the preference rows of `job.data`, and what they came to."""
    spec = compose_experiment(job)
    model_folder, seconds = locate_model(spec.model), {}

    def timed(stage: str, function: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = function()
        seconds[stage] = time.perf_counter() - started
        return result

    splits = timed("validate", lambda: data.load_rows(spec))
    tokens = timed("tokenize", lambda: tokenized.tokenize(spec, splits, model_folder, Console(quiet=True)))
    passes = timed("pack", lambda: pack_epoch(tokens.train, job.batch))
    return {
        "seconds": seconds,
        "rows": {"train": len(tokens.train), "heldout": len(splits.heldout)},
        "dropped": dict(splits.dropped),
        "tokens": data.total_tokens(tokens.train),
        "passes": passes,
    }


def pack_epoch(rows: Any, global_batch: int) -> int:
    """Lay out the steps of an epoch as a run does; gives the number of forward passes."""
    import torch

    engine = Engine(packed=True, max_tokens=PASS_TOKENS, device=torch.device("cpu"))
    sampler = GlobalBatchSampler([[index] for index in range(len(rows))], [0] * len(rows), global_batch, 0)
    passes = 0
    for batch in sampler:
        sequences = [sequence for index in batch for sequence in pair_sequences(rows[index])]
        passes += len(engine.local_batches(sequences))
    return passes
