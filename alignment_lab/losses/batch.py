"""What objectives are given and what they give back, and the arithmetic that several of them share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogprobs:
    """log p(completion | prompt) of both answers of each row under one model, and the tokens that it was summed over."""

    chosen: Tensor  # [B] nats, summed over completion tokens
    rejected: Tensor  # [B] nats
    chosen_lengths: Tensor  # [B] completion tokens
    rejected_lengths: Tensor  # [B] completion tokens


@dataclass(frozen=True)
class PairLoss:
    """One loss per pair, and what the objective takes for the reward of each answer, detached: [B] each."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


@dataclass(frozen=True)
class SingleLoss:
    """One loss per labelled answer, and what the objective takes for its reward, detached: [B] each."""

    losses: Tensor
    rewards: Tensor


def to_float32(values: Tensor) -> Tensor:
    """In float32, or float64 where it is that already: differences of sums over hundreds of tokens are lost in bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def per_token(sums: Tensor, lengths: Tensor) -> Tensor:
    """Means over completion tokens: [B], [B] -> [B]. An empty completion counts as one token."""
    return to_float32(sums) / lengths.clamp(min=1)


def accuracy(margins: Tensor) -> Tensor:
    """Whether the chosen answer is the better one: [B] -> [B]. A tie counts as half: at the start every margin is 0."""
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def smoothed_logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of a pair's label, of which a share `label_smoothing` is believed to be flipped: [B] -> [B]."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def with_rewards(losses: Tensor, beta: float, chosen: Tensor, rejected: Tensor) -> PairLoss:
    """The losses with beta times what they were computed from as rewards: [B] each."""
    return PairLoss(losses, beta * chosen.detach(), beta * rejected.detach())
