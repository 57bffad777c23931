"""The losses as pure functions: log-probabilities in, one loss per row out. Refuses to know a model, a batch
layout or a config.

A pairwise loss is `f(policy, reference, *, settings)`; one without a reference is `f(policy, *, settings)`.
Each keyword is a field of the method's schema, where its default stands. A pair's rewards are those that TRL
logs: with a reference beta times the log-ratio summed over tokens, also where the loss compares means or
another divergence; without one beta times what the loss compares.
"""

from .common import PairLogprobs, PairLoss, SingleLoss, log_ratios, pair_accuracy, per_token, with_rewards
from .divergences import under_divergence
from .pairwise import PAIRWISE_LOSSES
from .reward import bradley_terry
from .sums import length_damped_sum, weighted_sum, wpo_weights
from .unpaired import balanced_weights, bco, kto, kto_kl

__all__ = [
    "PAIRWISE_LOSSES",
    "PairLogprobs",
    "PairLoss",
    "SingleLoss",
    "balanced_weights",
    "bco",
    "bradley_terry",
    "kto",
    "kto_kl",
    "length_damped_sum",
    "log_ratios",
    "pair_accuracy",
    "per_token",
    "under_divergence",
    "weighted_sum",
    "with_rewards",
    "wpo_weights",
]
