"""The log-probability engine: a causal model and token ids in, log p(completion | prompt) out.

Every method and every evaluation asks here. Rows are right-padded; under causal attention no real token sees the padding, so
no mask is passed, and the head runs only where some row's completion is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100
Progress = Callable[[Sequence[Any]], Iterable[Any]]  # shows how far along a loop over these steps is


@dataclass(frozen=True)
class Sequences:
    """N right-padded sequences; a label is the token itself where it is scored, IGNORED elsewhere."""

    input_ids: Tensor  # [N, T]
    labels: Tensor  # [N, T]

    def to(self, device: torch.device) -> Sequences:
        """The same on `device`."""
        return Sequences(self.input_ids.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Logprobs:
    """Per sequence: the sum over its scored tokens, and how many they are: [N] nats, [N] tokens."""

    sums: Tensor
    lengths: Tensor


def sequences(rows: Sequence[tuple[list[int], list[int]]]) -> Sequences:
    """Right-pad (ids, labels) of N sequences to the longest."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)  # any id will do: nobody looks at padding
    labels = torch.full((len(rows), width), IGNORED)
    for place, (row_ids, row_labels) in enumerate(rows):
        ids[place, : len(row_ids)] = torch.tensor(row_ids)
        labels[place, : len(row_labels)] = torch.tensor(row_labels)
    return Sequences(ids, labels)


def completion(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """(ids, labels) of a prompt and the answer that is scored."""
    return prompt + answer, [IGNORED] * len(prompt) + answer


def completion_logprobs(model: PreTrainedModel, batch: Sequences) -> Logprobs:
    """Sum of log p(token | all before it) over the scored tokens of each sequence, in float32.

    The logits at t predict token t + 1; a first token is never scored.
    """
    targets = batch.labels[:, 1:]  # [N, T-1]
    scored = targets != IGNORED
    first = int(scored.any(0).int().argmax())  # before it, no row has a scored token
    places = torch.arange(first, targets.shape[1], device=targets.device)
    logits = model(input_ids=batch.input_ids, logits_to_keep=places, use_cache=False).logits  # [N, T-1-first, V]
    targets, scored = targets[:, first:], scored[:, first:]
    picked = _log_softmax_at(logits, targets.clamp(min=0))  # [N, T-1-first]
    return Logprobs(sums=(picked * scored).sum(1), lengths=scored.sum(1))


def _log_softmax_at(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits)[ids] in float32, without a second tensor of the logits' size: [N, T, V], [N, T] -> [N, T]."""
    logits = logits.float()
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)


@contextmanager
def inference(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """No gradients, evaluation mode, computing in `dtype`; the model's mode is given back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            yield
    finally:
        model.train(training)


def score(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], list[int]]],
    batch: int,
    dtype: torch.dtype,
    progress: Progress,
) -> Logprobs:
    """Log-probabilities of all rows, `batch` at a time, longest first so that memory peaks at once; on the CPU, in the rows' order."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place][0]))
    sums, lengths = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
    steps = [order[start : start + batch] for start in range(0, len(order), batch)]
    with inference(model, dtype):
        for places in progress(steps):
            found = completion_logprobs(model, sequences([rows[place] for place in places]).to(model.device))
            sums[places], lengths[places] = found.sums.cpu(), found.lengths.cpu()
    return Logprobs(sums, lengths)
