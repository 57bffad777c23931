"""Sums of losses, and the weights of tokens and pairs that come before or after a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .common import PairLoss, to_float32


def weighted_sum(parts: Sequence[tuple[float, PairLoss]]) -> PairLoss:
    """The weighted sum of losses, and the weighted mean of their rewards: [B] each."""
    total = sum(weight for weight, _ in parts)
    return PairLoss(
        torch.stack([weight * part.losses for weight, part in parts]).sum(0),
        torch.stack([weight / total * part.chosen_rewards for weight, part in parts]).sum(0),
        torch.stack([weight / total * part.rejected_rewards for weight, part in parts]).sum(0),
    )


def wpo_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """How likely the policy is to generate both answers of a pair: exp(chosen + rejected), detached; [B], [B]
    -> [B].

    Eq. 2 of Zhou et al. 2024 (arXiv:2406.11827), its aligned form: an argument is a completion's mean over
    tokens of log pi(token) - log sum_v pi(v)^2, so that a token as likely as one sampled on average counts 1.
    It multiplies any pairwise loss. As in TRL 1.16 it may exceed 1; the authors' code does not let it.
    """
    return (to_float32(chosen) + to_float32(rejected)).detach().exp()


def length_damped_sum(
    token_logps: Tensor, owners: Tensor, offsets: Tensor, shared_lengths: Tensor, n: int, *, alpha: float
) -> Tensor:
    """Sums of log-probabilities in which tokens beyond the pair's shorter length count alpha: [N] nats.

    LD-DPO, Liu et al. 2024 (arXiv:2409.06411). owners [S] is the completion of each token, offsets [S] its
    place in it from 0 on, shared_lengths [N] the shorter length of the pair that each completion belongs to.
    alpha 1 is the plain sum, alpha 0 leaves the longer answer's tail out.
    """
    token_logps = to_float32(token_logps)
    damped = torch.where(offsets < shared_lengths[owners], token_logps, alpha * token_logps)  # [S]
    return damped.new_zeros(n).index_add(0, owners, damped)
