"""How far the policy went from its reference on an answer, as several divergences measure it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Divergence
from .batch import PairLogprobs, to_float32

CAP = 40.0  # exp(40) is 2e17, whose square float32 can still hold: IPO squares it, and so does the gradient's norm


def log_ratios(policy: PairLogprobs, reference: PairLogprobs) -> tuple[Tensor, Tensor]:
    """log pi(y|x) / pi_ref(y|x) of the chosen and the rejected answers: [B] nats each."""
    return to_float32(policy.chosen) - to_float32(reference.chosen), to_float32(policy.rejected) - to_float32(
        reference.rejected
    )


def scores(
    policy: PairLogprobs, reference: PairLogprobs, divergence: Divergence, alpha: float
) -> tuple[Tensor, Tensor]:
    """f'(pi / pi_ref) of the chosen and the rejected answers: the implicit reward over beta, up to the prompt's constant; [B] each.

    Wang et al. 2023 (arXiv:2309.16240). The constant cancels only where an objective sees nothing but the difference of the two.
    """
    chosen, rejected = log_ratios(policy, reference)
    return slope(chosen, divergence, alpha), slope(rejected, divergence, alpha)


def slope(log_ratio: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f'(u) at u = exp(log_ratio), zero at u = 1 for each of the four: [B] -> [B].

    reverse_kl: log u. forward_kl: 1 - 1/u. js: log 2u/(1+u). alpha: (1 - u^-alpha) / alpha, the paper's, which goes to reverse KL
    as alpha goes to 0 and to forward KL as it goes to 1. Forward KL and alpha grow without bound where the policy drops an answer that the
    reference would give: from exp(40) on they are held, without gradient.
    """
    if divergence is Divergence.forward_kl:
        return -torch.expm1((-log_ratio).clamp(max=CAP))
    if divergence is Divergence.js:
        return math.log(2) + F.logsigmoid(log_ratio)
    if divergence is Divergence.alpha:
        return -torch.expm1((-alpha * log_ratio).clamp(max=CAP)) / alpha
    return log_ratio
