"""How far the policy went from its reference on an answer, as several divergences measure it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Divergence
from .common import MAX_EXPONENT, PairLogprobs, log_ratios


def under_divergence(
    policy: PairLogprobs, reference: PairLogprobs, divergence: Divergence, alpha: float
) -> tuple[PairLogprobs, PairLogprobs]:
    """The arguments for which a loss's log-ratio is f'(pi / pi_ref), the implicit reward over beta: [B] each.

    Wang et al. 2023 (arXiv:2309.16240). f' is known up to a constant of the prompt, which cancels only where
    a loss sees nothing but the difference of the two. Under reverse KL nothing changes.
    """
    if divergence is Divergence.reverse_kl:
        return policy, reference
    chosen, rejected = (derivative(ratio, divergence, alpha) for ratio in log_ratios(policy, reference))
    zeros = torch.zeros_like(chosen)
    return replace(policy, chosen=chosen, rejected=rejected), replace(reference, chosen=zeros, rejected=zeros)


def derivative(log_ratio: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f'(u) at u = exp(log_ratio), zero at u = 1 for each of the four: [B] -> [B].

    reverse_kl: log u. forward_kl: 1 - 1/u. js: log 2u/(1+u). alpha: (1 - u^-alpha) / alpha, the paper's,
    which goes to reverse KL as alpha goes to 0 and to forward KL as it goes to 1. Forward KL and alpha grow
    without bound where the policy drops an answer that the reference would give: from exp(40) on they are
    clamped, without gradient.
    """
    if divergence is Divergence.forward_kl:
        return -torch.expm1((-log_ratio).clamp(max=MAX_EXPONENT))
    if divergence is Divergence.js:
        return math.log(2) + F.logsigmoid(log_ratio)
    if divergence is Divergence.alpha:
        return -torch.expm1((-alpha * log_ratio).clamp(max=MAX_EXPONENT)) / alpha
    return log_ratio
