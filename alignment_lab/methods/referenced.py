"""What methods with a reference share: its log-probabilities, and the proof that they fit the policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..distributed import ranks
from ..engine.logprobs import evaluation_mode, token_logprobs
from ..engine.packing import ScoredSequence
from ..engine.reference import fetch_reference_logps, reference_folder
from ..engine.reference_cache import check_agreement
from ..runtime.errors import UserError
from ..training import TrainContext
from ..training.batch import GlobalBatch

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


def check_first_step(
    context: TrainContext, batch: GlobalBatch, policy: Tensor, reference: Tensor, lengths: Tensor
) -> None:
    """Raise UserError where the untrained policy is not its reference: [N] sums in nats, [N] tokens.

    The first step's own forward pass proves the cache, where the model is the same function in training. A
    policy that is NaN says nothing of it: no step will be taken.
    """
    finite = torch.isfinite(policy.detach())
    cached, live = (
        list((sums.detach() / lengths.clamp(min=1))[finite, None].cpu().numpy())
        for sums in (reference, policy)
    )
    folder = reference_folder(context.weights_digest, context.dtype)
    tolerance = REFERENCE_TOLERANCE[context.dtype]
    try:
        check_agreement(cached, live, tolerance=tolerance, folder=folder)
    except UserError:
        _require_same_in_training(context, batch, tolerance)
        raise


def _require_same_in_training(context: TrainContext, batch: GlobalBatch, tolerance: float) -> None:
    """Raise UserError where the model itself scores the rows otherwise in training mode: the cache is right.

    Of one process alone: several would have to ask together.
    """
    if ranks.world_size() > 1:
        return
    with evaluation_mode(context.model, context.dtype):
        expected = token_logprobs(context.model, batch.passes[0]).logps
        context.model.train()  # `evaluation_mode` restores what was before
        difference = float((token_logprobs(context.model, batch.passes[0]).logps - expected).abs().mean())
    if difference > tolerance:
        raise UserError(
            f"model.path: {type(context.model).__name__} gives other log-probabilities in training mode, by "
            f"{difference:.2g} nats per token, so its policy is not its reference; set the rates of dropout "
            "and noise in its config.json to 0, or use another model."
        )
