"""The loss of a reward model: scores of both answers in, no log-probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .common import PairLoss, to_float32


def bradley_terry(chosen: Tensor, rejected: Tensor, *, margin: Tensor, centering: float) -> PairLoss:
    """-log sigmoid(s_w - s_l - margin) + centering * (s_w + s_l)^2: Bradley-Terry. [B] each.

    `margin` says how much better the chosen answer is, 0 where that is not known: Eq. 2 of Llama 2
    (arXiv:2307.09288). A score is only defined up to a constant per prompt; the second term (Eisenstein et
    al. 2023, arXiv:2312.09244) draws the mean of the two to 0, so that scores of different prompts can be
    compared.
    """
    chosen, rejected = to_float32(chosen), to_float32(rejected)
    losses = -F.logsigmoid(chosen - rejected - margin) + centering * (chosen + rejected).square()
    return PairLoss(losses, chosen.detach(), rejected.detach())
