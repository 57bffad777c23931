"""What methods with a reference share: its log-probabilities, and the proof that they fit the policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.packing import ScoredSequence
from ..engine.reference import fetch_reference_logps, reference_folder
from ..engine.reference_cache import check_agreement
from ..training import TrainContext

REFERENCE_TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
}  # nats per token between two computations of a log-probability


def reference_logps(context: TrainContext, sequences: Sequence[ScoredSequence]) -> list[Tensor]:
    """log p of every answer token under the reference, [tokens] nats per sequence; prints how many the cache
    had.
    """
    folder = reference_folder(context.weights_digest, context.dtype)
    logps, computed = fetch_reference_logps(
        context.model, sequences, context.engine, context.dtype, folder, context.console
    )
    context.notify(f"reference: {len(sequences) - computed} of {len(sequences)} answers from {folder}")
    return logps


def check_first_step(context: TrainContext, policy: Tensor, reference: Tensor, lengths: Tensor) -> None:
    """Raise UserError where the untrained policy is not its reference: [N] sums in nats, [N] tokens.

    The first step's own forward pass proves the cache. A policy that is NaN says nothing of it: no step will
    be taken.
    """
    finite = torch.isfinite(policy.detach())
    cached, live = (
        list((sums.detach() / lengths.clamp(min=1))[finite, None].cpu().numpy())
        for sums in (reference, policy)
    )
    folder = reference_folder(context.weights_digest, context.dtype)
    check_agreement(cached, live, tolerance=REFERENCE_TOLERANCE[context.dtype], folder=folder)
