"""Sums of objectives, and the weights of tokens and pairs that come before or after an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .batch import PairLogprobs, PairLoss, to_float32
from .referenced import (
    apo_down,
    apo_zero,
    bco_pair,
    discopop,
    dpo,
    dpo_norm,
    exo,
    hinge,
    ipo,
    nca,
    robust_dpo,
    sppo,
)

MIXABLE: dict[
    str, Callable[..., PairLoss]
] = {  # not aot, whose losses are no pair's own; not ld_dpo, which needs other sums
    "dpo": dpo,
    "robust_dpo": robust_dpo,
    "ipo": ipo,
    "hinge": hinge,
    "exo": exo,
    "nca": nca,
    "sppo": sppo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "bco_pair": bco_pair,
    "discopop": discopop,
    "dpo_norm": dpo_norm,
}


def mpo(
    policy: PairLogprobs, reference: PairLogprobs, *, beta: float, objectives: Mapping[str, float]
) -> PairLoss:
    """sum_i w_i L_i of several objectives: Wang et al. 2024 (arXiv:2411.10442), with 0.8 dpo, 0.2 bco_pair, and 1.0 NLL as `sft_weight`.

    Which answer is better, how good each is, and how to write the chosen one, at once. Each objective has this beta and its own
    defaults otherwise; their losses may differ by orders of magnitude, and then the weights say little.
    """
    return weighted_sum(
        [
            (weight, MIXABLE[name](policy, reference, beta=beta))
            for name, weight in objectives.items()
            if weight
        ]
    )


def weighted_sum(parts: Sequence[tuple[float, PairLoss]]) -> PairLoss:
    """The weighted sum of the losses, and the weighted mean of the rewards: [B] each."""
    total = sum(weight for weight, _ in parts)
    return PairLoss(
        torch.stack([weight * part.losses for weight, part in parts]).sum(0),
        torch.stack([weight / total * part.chosen_rewards for weight, part in parts]).sum(0),
        torch.stack([weight / total * part.rejected_rewards for weight, part in parts]).sum(0),
    )


def wpo_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """How likely the policy is to say both answers of a pair itself: exp(chosen + rejected), detached; [B], [B] -> [B].

    Eq. 2 of Zhou et al. 2024 (arXiv:2406.11827), its aligned form: an argument is a completion's mean over tokens of
    log pi(token) - log sum_v pi(v)^2, so that a token as likely as one sampled on average counts 1. It multiplies any pairwise loss.
    As in TRL 1.16 it may exceed 1; the authors' code does not let it.
    """
    return (to_float32(chosen) + to_float32(rejected)).detach().exp()


def length_damped_sum(
    token_logps: Tensor, owner: Tensor, place: Tensor, public: Tensor, n: int, *, alpha: float
) -> Tensor:
    """Sums of log-probabilities in which tokens beyond the public length count alpha: [S], [S], [S], [N] -> [N] nats.

    LD-DPO, Liu et al. 2024 (arXiv:2409.06411). owner[s] is the completion of token s, place[s] its place in it from 0 on, public[i] the
    shorter length of the pair that completion i belongs to. alpha 1 is the plain sum, alpha 0 leaves the longer answer's tail out.
    """
    token_logps = to_float32(token_logps)
    kept = torch.where(place < public[owner], token_logps, alpha * token_logps)  # [S]
    return kept.new_zeros(n).index_add(0, owner, kept)
