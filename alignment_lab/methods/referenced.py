"""What methods with a reference share: its log-probabilities as columns of the rows, and the proof that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.packing import ScoredSequence
from ..engine.reference import fetch_reference_logps, reference_folder
from ..engine.reference_cache import check_agreement
from ..training.context import TrainContext

Row = dict[str, Any]
APART = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
}  # nats per token between two computations of the same log-probability


def reference_logps(setting: TrainContext, sequences: Sequence[ScoredSequence]) -> list[Tensor]:
    """log p of every answer token under the reference, [tokens] nats per sequence; says how much of it was there already."""
    where = reference_folder(setting.weights, setting.dtype)
    found, asked = fetch_reference_logps(
        setting.model, sequences, setting.engine, setting.dtype, where, setting.console
    )
    said = f"reference: {len(sequences) - asked} of {len(sequences)} answers from {where}"
    setting.console.print(said, highlight=False, soft_wrap=True)
    return found


def check_first_step(setting: TrainContext, policy: Tensor, reference: Tensor, lengths: Tensor) -> None:
    """UserError where the untrained policy is not its reference: [N] sums, [N] tokens. The first step's own forward proves the store.

    A policy that is no number says nothing of the store: the step will not be taken.
    """
    sound = torch.isfinite(policy.detach())
    stored, live = (
        list((sums.detach() / lengths.clamp(min=1))[sound, None].cpu().numpy())
        for sums in (reference, policy)
    )
    check_agreement(
        stored, live, tolerance=APART[setting.dtype], folder=reference_folder(setting.weights, setting.dtype)
    )
