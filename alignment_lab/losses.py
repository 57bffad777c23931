"""The objectives as pure functions: log-probabilities in, one loss per row out. Knows no model, no batch layout, no config."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogprobs:
    """log p(completion | prompt) of both answers of each row, summed over completion tokens: [B] nats."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class PairLoss:
    """One loss per row and the implicit rewards (Eq. 5 of arXiv:2305.18290, up to the prompt's constant), detached: [B] each."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo(policy: PairLogprobs, reference: PairLogprobs, *, beta: float, label_smoothing: float = 0.0) -> PairLoss:
    """-log sigmoid(beta * margin): Eq. 7 of Rafailov et al. 2023 (arXiv:2305.18290); smoothed as in cDPO.

    margin = log-ratio(chosen) - log-ratio(rejected), summed over completion tokens: a longer answer weighs more.
    """
    chosen = policy.chosen - reference.chosen  # [B] nats
    rejected = policy.rejected - reference.rejected  # [B] nats
    margin = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return PairLoss(losses, beta * chosen.detach(), beta * rejected.detach())
