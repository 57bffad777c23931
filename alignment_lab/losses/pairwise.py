"""Losses on preference pairs: those that compare the policy with a reference, and those that need none.

Log-ratios are f' of the ratio under another divergence than reverse KL: `under_divergence` prepares the
arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import (
    MAX_EXPONENT,
    PairLogprobs,
    PairLoss,
    log_ratios,
    per_token,
    smoothed_logistic,
    to_float32,
    with_rewards,
)
from .sums import weighted_sum


def dpo(policy: PairLogprobs, reference: PairLogprobs, *, beta: float, label_smoothing: float) -> PairLoss:
    """-log sigmoid(beta * (r_w - r_l)), r the log-ratio: Eq. 7 of Rafailov et al. 2023 (arXiv:2305.18290).

    Smoothed, it is cDPO. The chosen answer is to gain more over its reference than the rejected one.
    Log-ratios are sums over tokens: a longer answer weighs more, and the loss falls just as well when both
    answers become less likely.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    return with_rewards(
        smoothed_logistic(beta * (chosen - rejected), label_smoothing), beta, chosen, rejected
    )


def dpo_norm(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """-log sigmoid(beta * (r_w / |y_w| - r_l / |y_l|)): length-normalized DPO of Tülu 3 (arXiv:2411.15124).

    A mean over tokens is some hundred times smaller than a sum, so beta must be larger than DPO's: Tülu 3
    uses 5.
    """
    chosen, rejected = _ratios_per_token(policy, reference)
    losses = -F.logsigmoid(beta * (chosen - rejected))
    return with_rewards(losses, beta, *log_ratios(policy, reference))


def robust_dpo(
    policy: PairLogprobs, reference: PairLogprobs, *, beta: float, label_smoothing: float
) -> PairLoss:
    """((1-e) L(m) - e L(-m)) / (1-2e), L = -log sigmoid, m = beta * (r_w - r_l): Chowdhury et al. 2024
    (arXiv:2403.00409).

    Its mean over labels flipped with probability e is DPO's loss on the true ones. It has no lower bound:
    L(-m) grows as the margin does.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    margin = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    return with_rewards(losses / (1 - 2 * label_smoothing), beta, chosen, rejected)


def ipo(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """(r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2: Eq. 17 of Azar et al. 2023 (arXiv:2310.12036), beta the
    paper's tau.

    The margin is drawn to a target instead of pushed for ever. The paper does not say that log-ratios are
    means over tokens; its authors confirmed it to TRL. So the target is in nats per token: at beta 0.1 it is
    5, which is far.
    """
    chosen, rejected = _ratios_per_token(policy, reference)
    losses = (chosen - rejected - 1 / (2 * beta)).square()
    return with_rewards(losses, beta, *log_ratios(policy, reference))


def hinge(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """max(0, 1 - beta * (r_w - r_l)): SLiC (arXiv:2305.10425), on log-ratios as RSO has it
    (arXiv:2309.06657).

    1 / beta is the margin in nats from which on a pair has no gradient.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    return with_rewards(F.relu(1 - beta * (chosen - rejected)), beta, chosen, rejected)


def exo(policy: PairLogprobs, reference: PairLogprobs, *, beta: float, label_smoothing: float) -> PairLoss:
    """KL(q || p), q = sigmoid(+-beta * (r_w - r_l)), p = (1-e, e): EXO-pref, Eq. 16 of Ji et al. 2024
    (arXiv:2402.00856).

    DPO is the same KL the other way round. At e = 0 it is infinite.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    margin = beta * (chosen - rejected)
    won = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    lost = (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(label_smoothing))
    return with_rewards(won + lost, beta, chosen, rejected)


def discopop(policy: PairLogprobs, reference: PairLogprobs, *, beta: float, tau: float) -> PairLoss:
    """(1-s) * -log sigmoid(m) + s * exp(-m), s = sigmoid(m / tau), m = beta * (r_w - r_l): Eq. 5 of
    arXiv:2406.08414.

    Lu et al. 2024; a language model discovered it. It is not convex: its slope at m = 0, where every run
    starts, is (1 - log 2) / (4 tau) - 3/4, so that for tau below 0.102 the first steps lower the margin.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    margin = beta * (chosen - rejected)
    logistic = -F.logsigmoid(margin) * (-margin / tau).sigmoid()
    exponential = (
        F.logsigmoid(margin / tau) - margin
    ).exp()  # the product in one exponent: exp(-m) alone overflows
    return with_rewards(logistic + exponential, beta, chosen, rejected)


def nca(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """-log sigmoid(r_w) - (log sigmoid(-r_w) + log sigmoid(-r_l)) / 2, r = beta * log-ratio.

    Chen et al. 2024 (arXiv:2402.05369). Each answer's own likelihood counts, not the difference: the chosen
    one does not fall, as it may under DPO.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    noise = F.logsigmoid(-beta * chosen) + F.logsigmoid(-beta * rejected)
    return with_rewards(-F.logsigmoid(beta * chosen) - 0.5 * noise, beta, chosen, rejected)


def sppo(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """(r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2: Eq. 4.7 of Wu et al. 2024 (arXiv:2405.00675) for certain
    winners.

    Both log-ratios are drawn to a target of their own. 1/beta is the paper's eta; its 1000 is beta 0.001, a
    target of 500 nats a side.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    target = 0.5 / beta
    return with_rewards((chosen - target).square() + (rejected + target).square(), beta, chosen, rejected)


def aot(policy: PairLogprobs, reference: PairLogprobs, *, beta: float, label_smoothing: float) -> PairLoss:
    """-log sigmoid(beta * (sort(d) - sort(d_ref))), d = log pi(y_w) - log pi(y_l).

    The paired form of Melnyk et al. 2024 (arXiv:2406.05882). The policy's distribution of margins is to lie
    above the reference's, quantile by quantile. Loss i is that of the batch's i-th quantile, not of pair i;
    the mean depends on which pairs share a batch, and for a batch of one it is DPO.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each, for the rewards only
    margins = _sorted_margins(policy) - _sorted_margins(reference)  # [B] nats, of quantiles
    return with_rewards(smoothed_logistic(beta * margins, label_smoothing), beta, chosen, rejected)


def apo_zero(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """sigmoid(-r_w) + sigmoid(r_l), r = beta * log-ratio: Eq. 7 of D'Oosterlinck et al. 2024
    (arXiv:2408.06266).

    Chosen up, rejected down: for chosen answers that are better than what the model generates.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    return with_rewards((-beta * chosen).sigmoid() + (beta * rejected).sigmoid(), beta, chosen, rejected)


def apo_down(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """sigmoid(r_w) + sigmoid(-(r_w - r_l)), r = beta * log-ratio: Eq. 8 of D'Oosterlinck et al. 2024
    (arXiv:2408.06266).

    Both down, the rejected more: for a model that is already better than the chosen answers.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    losses = (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()
    return with_rewards(losses, beta, chosen, rejected)


def bco_pair(policy: PairLogprobs, reference: PairLogprobs, *, beta: float) -> PairLoss:
    """-log sigmoid(r_w) - log sigmoid(-r_l), r = beta * log-ratio.

    Jung et al. 2024 (arXiv:2404.04656), on pairs. A classifier of good and bad answers whose logit is the
    reward. The paper's shift, a running mean of the rewards, is left out, as in TRL; `bco` has it.
    """
    chosen, rejected = log_ratios(policy, reference)  # [B] nats each
    return with_rewards(-F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected), beta, chosen, rejected)


def mpo(
    policy: PairLogprobs,
    reference: PairLogprobs,
    *,
    parts: Sequence[tuple[float, Callable[[PairLogprobs, PairLogprobs], PairLoss]]],
) -> PairLoss:
    """sum_i w_i L_i of several losses: Wang et al. 2024 (arXiv:2411.10442), 0.8 dpo, 0.2 bco_pair, 1.0 NLL as
    `sft_weight`.

    Which answer is better, how good each is, and how to write the chosen one, at once. The losses may differ
    by orders of magnitude, and then the weights say little.
    """
    return weighted_sum([(weight, loss(policy, reference)) for weight, loss in parts])


def orpo(policy: PairLogprobs, *, beta: float) -> PairLoss:
    """-beta * log sigmoid(log odds(y_w) - log odds(y_l)): Eq. 7 of Hong et al. 2024 times its lambda.

    arXiv:2403.07691. odds = p / (1 - p), p the geometric mean of the tokens' probabilities. Only the odds
    ratio: the other term of the paper's loss, the chosen answer's NLL, is `sft_weight` and added by the
    trainer. Without it nothing keeps the model a language model.
    """
    chosen = per_token(policy.chosen, policy.chosen_lengths)  # [B] nats per token
    rejected = per_token(policy.rejected, policy.rejected_lengths)
    return with_rewards(-beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected)), beta, chosen, rejected)


def simpo(policy: PairLogprobs, *, beta: float, gamma: float) -> PairLoss:
    """-log sigmoid(beta * (p_w - p_l) - gamma), p = log pi(y|x) / |y|: Eq. 6 of Meng et al. 2024.

    arXiv:2405.14734. The reward is the mean log-probability, so that nothing is gained by length. gamma is
    the margin of the rewards, after beta: it is TRL's simpo_gamma, and beta times the gamma_beta_ratio of the
    authors' code.
    """
    chosen = per_token(policy.chosen, policy.chosen_lengths)  # [B] nats per token
    rejected = per_token(policy.rejected, policy.rejected_lengths)
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected) - gamma), beta, chosen, rejected)


def alphapo(policy: PairLogprobs, *, beta: float, gamma: float, alpha: float) -> PairLoss:
    """-log sigmoid(beta * (r_w - r_l) - gamma), r = (1 - p^-alpha) / alpha: Gupta et al. 2025.

    arXiv:2501.03884. p is the geometric mean of the tokens' probabilities. alpha bends SimPO's reward, which
    is its limit at 0: above 0 an unlikely answer costs more than its logarithm says, which slows the fall of
    the chosen one. As in TRL; from p^-alpha = exp(40) on the reward is clamped, without gradient.
    """
    chosen = per_token(policy.chosen, policy.chosen_lengths)  # [B] nats per token
    rejected = per_token(policy.rejected, policy.rejected_lengths)
    chosen, rejected = (
        -torch.expm1((-alpha * logp).clamp(max=MAX_EXPONENT)) / alpha for logp in (chosen, rejected)
    )
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected) - gamma), beta, chosen, rejected)


def cpo(policy: PairLogprobs, *, beta: float, label_smoothing: float) -> PairLoss:
    """-log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))): the first term of Eq. 3 of Xu et al. 2024.

    arXiv:2401.08417. DPO with a uniform reference; the second term, the chosen answer's NLL, is `sft_weight`.
    Sums over tokens: of two equally good answers the shorter one has the higher reward from the start.
    """
    chosen, rejected = to_float32(policy.chosen), to_float32(policy.rejected)  # [B] nats
    return with_rewards(
        smoothed_logistic(beta * (chosen - rejected), label_smoothing), beta, chosen, rejected
    )


def _ratios_per_token(policy: PairLogprobs, reference: PairLogprobs) -> tuple[Tensor, Tensor]:
    """The log-ratios over the answers' lengths: [B] each. A divergence sees the whole answer, as in TRL."""
    chosen, rejected = log_ratios(policy, reference)
    return per_token(chosen, policy.chosen_lengths), per_token(rejected, policy.rejected_lengths)


def _sorted_margins(model: PairLogprobs) -> Tensor:
    return (to_float32(model.chosen) - to_float32(model.rejected)).sort().values


def _log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)): [B] -> [B]. Finite, with a finite gradient, even at p = 1; off by less than
    rounding.
    """
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return log_p - (-torch.expm1(log_p)).log()


PAIRWISE_LOSSES: dict[str, Callable[..., PairLoss]] = {  # by the name of the method
    "dpo": dpo,
    "robust_dpo": robust_dpo,
    "ipo": ipo,
    "hinge": hinge,
    "exo": exo,
    "nca": nca,
    "sppo": sppo,
    "aot": aot,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "bco_pair": bco_pair,
    "discopop": discopop,
    "dpo_norm": dpo_norm,
    "ld_dpo": dpo,  # on other sums: length_damped_sum
    "mpo": mpo,
    "orpo": orpo,
    "simpo": simpo,
    "alphapo": alphapo,
    "cpo": cpo,
}
