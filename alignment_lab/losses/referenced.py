"""Objectives on preference pairs that compare the policy with a reference."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ..config import Divergence
from .batch import PairLogprobs, PairLoss, per_token, smoothed_logistic, to_float32, with_rewards
from .divergence import log_ratios, scores

REVERSE_KL = Divergence.reverse_kl


def dpo(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """-log sigmoid(beta * (r_w - r_l)), r the log-ratio: Eq. 7 of Rafailov et al. 2023 (arXiv:2305.18290); smoothed, it is cDPO.

    The chosen answer is to gain more over its reference than the rejected one. Log-ratios are sums over tokens: a longer answer weighs
    more, and the loss falls just as well when both answers become less likely.
    """
    chosen, rejected = scores(policy, reference, divergence, divergence_alpha)  # [B] each
    return with_rewards(
        smoothed_logistic(beta * (chosen - rejected), label_smoothing), beta, chosen, rejected
    )


def ld_dpo(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """DPO on log-probabilities whose excess tokens count alpha: Liu et al. 2024 (arXiv:2409.06411).

    The formula is `dpo`; what differs are the sums, of the policy and of the reference alike, which `desensitised` must have made.
    """
    smoothing, alpha = label_smoothing, divergence_alpha
    return dpo(
        policy, reference, beta=beta, label_smoothing=smoothing, divergence=divergence, divergence_alpha=alpha
    )


def dpo_norm(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """-log sigmoid(beta * (r_w / |y_w| - r_l / |y_l|)): DPO normalized by length, as in Tülu 3 (arXiv:2411.15124).

    A mean over tokens is some hundred times smaller than a sum, so beta must be larger than DPO's: Tülu 3 uses 5.
    """
    chosen, rejected = _scores_per_token(policy, reference, divergence, divergence_alpha)
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected)), beta, chosen, rejected)


def robust_dpo(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    label_smoothing: float = 0.1,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """((1-e) L(m) - e L(-m)) / (1-2e), L = -log sigmoid, m = beta * (r_w - r_l): Chowdhury et al. 2024 (arXiv:2403.00409).

    Its mean over labels flipped with probability e is DPO's loss on the true ones. It has no lower bound: L(-m) grows as the margin does.
    """
    chosen, rejected = scores(policy, reference, divergence, divergence_alpha)  # [B] each
    margin = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    return with_rewards(losses / (1 - 2 * label_smoothing), beta, chosen, rejected)


def ipo(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """(r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2: Eq. 17 of Azar et al. 2023 (arXiv:2310.12036), beta being the paper's tau.

    The margin is drawn to a target instead of pushed for ever. The paper does not say that log-ratios are means over tokens; its authors
    confirmed it to TRL. So the target is in nats per token: at beta 0.1 it is 5, which is far.
    """
    chosen, rejected = _scores_per_token(policy, reference, divergence, divergence_alpha)
    return with_rewards((chosen - rejected - 1 / (2 * beta)).square(), beta, chosen, rejected)


def hinge(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """max(0, 1 - beta * (r_w - r_l)): SLiC (arXiv:2305.10425), on log-ratios as RSO has it (arXiv:2309.06657).

    1 / beta is the margin in nats; a pair that has reached it teaches nothing more.
    """
    chosen, rejected = scores(policy, reference, divergence, divergence_alpha)  # [B] each
    return with_rewards(F.relu(1 - beta * (chosen - rejected)), beta, chosen, rejected)


def exo(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    label_smoothing: float = 1e-3,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """KL(q || p), q = sigmoid(+-beta * (r_w - r_l)), p = (1-e, e): EXO-pref, Eq. 16 of Ji et al. 2024 (arXiv:2402.00856).

    DPO is the same KL the other way round. At e = 0 it is infinite.
    """
    chosen, rejected = scores(policy, reference, divergence, divergence_alpha)  # [B] each
    margin = beta * (chosen - rejected)
    won = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    lost = (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(label_smoothing))
    return with_rewards(won + lost, beta, chosen, rejected)


def discopop(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    beta: float,
    tau: float = 0.05,
    divergence: Divergence = REVERSE_KL,
    divergence_alpha: float = 0.5,
) -> PairLoss:
    """(1-s) * -log sigmoid(m) + s * exp(-m), s = sigmoid(m / tau), m = beta * (r_w - r_l): Eq. 5 of Lu et al. 2024 (arXiv:2406.08414).

    A language model found it. It is not convex: its slope at m = 0, where every run starts, is (1 - log 2) / (4 tau) - 3/4, so that for tau
    below 0.102 the first steps lower the margin.
    """
    chosen, rejected = scores(policy, reference, divergence, divergence_alpha)  # [B] each
    margin = beta * (chosen - rejected)
    logistic = -F.logsigmoid(margin) * (-margin / tau).sigmoid()
    exponential = (
        F.logsigmoid(margin / tau) - margin
    ).exp()  # the product in one exponent: exp(-m) alone overflows
    return with_rewards(logistic + exponential, beta, chosen, rejected)


def nca(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """-log sigmoid(r_w) - (log sigmoid(-r_w) + log sigmoid(-r_l)) / 2, r = beta * log-ratio: Chen et al. 2024 (arXiv:2402.05369).

    Each answer's own likelihood counts, not the difference: the chosen one does not fall, as it may under DPO.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    noise = F.logsigmoid(-beta * chosen) + F.logsigmoid(-beta * rejected)
    return with_rewards(-F.logsigmoid(beta * chosen) - 0.5 * noise, beta, chosen, rejected)


def sppo(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """(r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2: Eq. 4.7 of Wu et al. 2024 (arXiv:2405.00675) for certain winners.

    Both log-ratios are drawn to a target of their own. 1/beta is the paper's eta; its 1000 is beta 0.001, a target of 500 nats a side.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    target = 0.5 / beta
    return with_rewards((chosen - target).square() + (rejected + target).square(), beta, chosen, rejected)


def aot(
    policy: PairLogprobs, reference: PairLogprobs, *, beta: float, label_smoothing: float = 0.0
) -> PairLoss:
    """-log sigmoid(beta * (sort(d) - sort(d_ref))), d = log pi(y_w) - log pi(y_l): Melnyk et al. 2024 (arXiv:2406.05882), paired.

    The policy's distribution of margins is to lie above the reference's, quantile by quantile. Loss i is that of the batch's i-th
    quantile, not of pair i; the mean depends on which pairs share a batch, and for a batch of one it is DPO.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each, for the rewards only
    margins = _sorted_margins(policy) - _sorted_margins(reference)  # [B] nats, of quantiles
    return with_rewards(smoothed_logistic(beta * margins, label_smoothing), beta, chosen, rejected)


def apo_zero(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """sigmoid(-r_w) + sigmoid(r_l), r = beta * log-ratio: Eq. 7 of D'Oosterlinck et al. 2024 (arXiv:2408.06266).

    Chosen up, rejected down: for chosen answers that are better than what the model says by itself.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    return with_rewards((-beta * chosen).sigmoid() + (beta * rejected).sigmoid(), beta, chosen, rejected)


def apo_down(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """sigmoid(r_w) + sigmoid(-(r_w - r_l)), r = beta * log-ratio: Eq. 8 of D'Oosterlinck et al. 2024 (arXiv:2408.06266).

    Both down, the rejected more: for a model that is already better than the chosen answers.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    losses = (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()
    return with_rewards(losses, beta, chosen, rejected)


def bco_pair(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """-log sigmoid(r_w) - log sigmoid(-r_l), r = beta * log-ratio: Jung et al. 2024 (arXiv:2404.04656), on pairs.

    A classifier of good and bad answers whose logit is the reward. The paper's shift, a running mean of the rewards, is left out, as in
    TRL; `bco` has it.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    return with_rewards(-F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected), beta, chosen, rejected)


def _scores_per_token(
    policy: PairLogprobs, reference: PairLogprobs, divergence: Divergence, alpha: float
) -> tuple[Tensor, Tensor]:
    """The scores over the answers' lengths: [B] each. The divergence sees the whole answer, as in TRL."""
    chosen, rejected = scores(policy, reference, divergence, alpha)
    return per_token(chosen, policy.chosen_lengths), per_token(rejected, policy.rejected_lengths)


def _sorted_margins(model: PairLogprobs) -> Tensor:
    return (to_float32(model.chosen) - to_float32(model.rejected)).sort().values
