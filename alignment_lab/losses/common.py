"""What losses are given and what they give back, and the arithmetic that several of them share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_EXPONENT = 40.0  # exp(40) is 2e17; float32 can hold its square, which IPO and the gradient's norm take


@dataclass(frozen=True)
class PairLogprobs:
    """log p(completion | prompt) of both answers of each row under one model, and the tokens that it was
    summed over.
    """

    chosen: Tensor  # [B] nats, summed over completion tokens
    rejected: Tensor  # [B] nats
    chosen_lengths: Tensor  # [B] completion tokens
    rejected_lengths: Tensor  # [B] completion tokens


@dataclass(frozen=True)
class PairLoss:
    """One loss per pair, and the reward of each answer as TRL logs it, detached: [B] each."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


@dataclass(frozen=True)
class SingleLoss:
    """One loss per labeled answer, and what the loss takes for its reward, detached: [B] each."""

    losses: Tensor
    rewards: Tensor


def to_float32(values: Tensor) -> Tensor:
    """In float32, or float64 where it is that already: bfloat16 loses differences of sums over hundreds of
    tokens.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_ratios(policy: PairLogprobs, reference: PairLogprobs) -> tuple[Tensor, Tensor]:
    """log pi(y|x) / pi_ref(y|x) of the chosen and the rejected answers: [B] nats each."""
    chosen = to_float32(policy.chosen) - to_float32(reference.chosen)
    return chosen, to_float32(policy.rejected) - to_float32(reference.rejected)


def per_token(sums: Tensor, lengths: Tensor) -> Tensor:
    """Means over completion tokens: [B], [B] -> [B]. An empty completion counts as one token."""
    return to_float32(sums) / lengths.clamp(min=1)


def pair_accuracy(margins: Tensor, *, tie: float = 0.0) -> Tensor:
    """1 where the chosen answer has the higher reward, `tie` where both have the same: [B] -> [B].

    TRL counts a tie as an error. Where the untrained policy is its own reference every pair is one.
    """
    return (margins > 0).float() + tie * (margins == 0).float()


def smoothed_logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of a pair's label, of which a share `label_smoothing` is assumed to be flipped: [B] ->
    [B].
    """
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def with_rewards(losses: Tensor, beta: float, chosen: Tensor, rejected: Tensor) -> PairLoss:
    """The losses with beta times these as rewards: [B] each."""
    return PairLoss(losses, beta * chosen.detach(), beta * rejected.detach())
