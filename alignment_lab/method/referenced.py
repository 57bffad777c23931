"""What methods with a reference share: its log-probabilities as columns of the rows, and the proof that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.pack import Scored
from ..errors import UserError
from ..reference import fetch, folder
from .setting import Setting

Row = dict[str, Any]
APART = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # nats per token between two computations of the same log-probability


def reference_logps(setting: Setting, sequences: Sequence[Scored]) -> list[Tensor]:
    """log p of every answer token under the reference, [tokens] nats per sequence; says how much of it was there already."""
    where = folder(setting.weights, setting.dtype)
    found, asked = fetch(setting.model, sequences, setting.engine, setting.dtype, where, setting.console)
    said = f"reference: {len(sequences) - asked} of {len(sequences)} answers from {where}"
    setting.console.print(said, highlight=False, soft_wrap=True)
    return found


def check_first_step(setting: Setting, policy: Tensor, reference: Tensor, lengths: Tensor) -> None:
    """UserError where the untrained policy is not its reference: [N] sums, [N] tokens. The first step's own forward proves the store."""
    apart = float(((policy.detach() - reference).abs() / lengths.clamp(min=1)).max())
    if not apart <= APART[setting.dtype]:
        where = folder(setting.weights, setting.dtype)
        raise UserError(
            f"The reference log-probabilities in {where} are off by {apart:.3g} nats per token from what this model gives:"
            " they were made by something else, so delete that folder and they are computed again."
        )
