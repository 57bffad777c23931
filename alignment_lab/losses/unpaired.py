"""Losses on single answers that are labeled desirable or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import SingleLoss, to_float32

MAX_RATIO = 4 / 3  # of desirable over undesirable weight in a data set, in KTO's paper; the least is 1


def kto(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    *,
    kl: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> SingleLoss:
    """w * (1 - sigmoid(+-beta * (r - kl))), r the log-ratio: Eq. 7 of Ethayarajh et al. 2024
    (arXiv:2402.01306).

    [B], [B], [B] bool. An answer is compared with the policy's usual drift, `kl`: a scalar, at least 0 and
    without gradient (`kto_kl`). The losses are bounded, so an answer that is far off on either side has no
    gradient.
    """
    ratio = to_float32(policy) - to_float32(reference)  # [B] nats
    missed = (-beta * torch.where(desirable, ratio - kl, kl - ratio)).sigmoid()
    return SingleLoss(
        torch.where(desirable, desirable_weight * missed, undesirable_weight * missed), beta * ratio.detach()
    )


def kto_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KTO's reference point: max(0, mean log-ratio) of M prompts with answers of other prompts, detached;
    [M], [M] -> scalar.

    Section 4.1 of Ethayarajh et al. 2024. Not an unbiased estimate of KL(pi || pi_ref): the answers come from
    the data and not from the policy, and the clamp raises it. Few rows make it noise: here the mean is taken
    over the whole global batch, of all processes and passes, where TRL takes each device's micro-batch.
    """
    return (to_float32(policy) - to_float32(reference)).mean().clamp(min=0).detach()


def balanced_weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """(desirable, undesirable) weights for so many rows of each, by the rule of KTO's paper (Eq. 8 of
    arXiv:2402.01306).

    desirable_weight * n_d / (undesirable_weight * n_u) is to lie in [1, 4/3]. Where it does with both weights
    1, they are; else the weight of the class that is too small is raised until the nearer bound is reached.
    Where a class has no rows there is nothing to balance: both 1.
    """
    if not desirable or not undesirable:
        return 1.0, 1.0
    ratio = desirable / undesirable
    return max(1.0, 1 / ratio), max(1.0, ratio / MAX_RATIO)


def bco(policy: Tensor, reference: Tensor, desirable: Tensor, *, beta: float, shift: Tensor) -> SingleLoss:
    """-log sigmoid(+-(r - shift)), r = beta * log-ratio: Jung et al. 2024 (arXiv:2404.04656).

    [B], [B], [B] bool. A classifier of good and bad answers whose logit is the reward. `shift` is the running
    mean of the rewards of both classes, a scalar without gradient: without it, a policy that drifts as a
    whole is all good or all bad. The paper's weights for prompts that differ between the classes (underlying
    distribution matching) are left out.
    """
    rewards = beta * (to_float32(policy) - to_float32(reference))  # [B]
    gain = torch.where(desirable, rewards - shift, shift - rewards)
    return SingleLoss(-F.logsigmoid(gain), rewards.detach())
