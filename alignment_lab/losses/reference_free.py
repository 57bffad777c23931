"""Objectives on preference pairs that need no reference model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import PairLogprobs, PairLoss, per_token, smoothed_logistic, to_float32, with_rewards


def orpo(policy: PairLogprobs, *, beta: float) -> PairLoss:
    """-beta * log sigmoid(log odds(y_w) - log odds(y_l)): Eq. 7 of Hong et al. 2024 (arXiv:2403.07691) times the paper's lambda.

    odds = p / (1 - p), p the geometric mean of the tokens' probabilities. Only the odds ratio: the other term of the paper's loss, the
    chosen answer's NLL, is `sft_weight` and added by whoever has the tokens. Without it nothing keeps the model a language model.
    """
    chosen = per_token(policy.chosen, policy.chosen_lengths)  # [B] nats per token
    rejected = per_token(policy.rejected, policy.rejected_lengths)
    return with_rewards(-beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected)), beta, chosen, rejected)


def _log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)): [B] -> [B]. Finite, with a finite gradient, even at p = 1; off by less than the type's own rounding."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return log_p - (-torch.expm1(log_p)).log()


def simpo(policy: PairLogprobs, *, beta: float, gamma: float = 1.0) -> PairLoss:
    """-log sigmoid(beta * (p_w - p_l) - gamma), p = log pi(y|x) / |y|: Eq. 6 of Meng et al. 2024 (arXiv:2405.14734).

    The reward is the mean log-probability, so that nothing is gained by length. gamma is the margin of the rewards, after beta: it is TRL's
    simpo_gamma, and beta times the gamma_beta_ratio of the authors' code.
    """
    chosen = per_token(policy.chosen, policy.chosen_lengths)  # [B] nats per token
    rejected = per_token(policy.rejected, policy.rejected_lengths)
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected) - gamma), beta, chosen, rejected)


def cpo(policy: PairLogprobs, *, beta: float, label_smoothing: float = 0.0) -> PairLoss:
    """-log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))): the first term of Eq. 3 of Xu et al. 2024 (arXiv:2401.08417).

    DPO with a uniform reference; the second term, the chosen answer's NLL, is `sft_weight`. Sums over tokens: of two answers as good the
    shorter one has the higher reward from the start.
    """
    chosen, rejected = to_float32(policy.chosen), to_float32(policy.rejected)  # [B] nats
    return with_rewards(
        smoothed_logistic(beta * (chosen - rejected), label_smoothing), beta, chosen, rejected
    )
