"""What a reward model says of answers: a score each, and the probability that a difference of two means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..runtime.progress import Progress

if TYPE_CHECKING:
    from .subject import Subject


def reward_scores(
    subject: Subject, answers: Sequence[tuple[list[int], list[int]]], progress: Progress = iter
) -> list[float]:
    """The score of each (prompt, answer), token ids both, in their order.

    The padding token counts in no answer, as in training.
    """
    from ..engine.logprobs import evaluation_mode, sequence_scores
    from ..engine.packing import ScoredSequence, without_padding

    padding = subject.tokenizer.pad_token_id
    sequences = [ScoredSequence(prompt, without_padding(answer, padding)) for prompt, answer in answers]
    found: dict[int, float] = {}
    with evaluation_mode(subject.model, subject.dtype):
        for batch in progress(subject.engine.local_batches(sequences)):
            scores = sequence_scores(subject.model, batch.to(subject.device))
            found |= zip(batch.sequence_ids.tolist(), scores.float().tolist(), strict=True)
    return [found[index] for index in range(len(sequences))]


def sigmoid(value: float) -> float:
    """The logistic function, without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
