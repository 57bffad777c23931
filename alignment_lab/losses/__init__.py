"""The losses as pure functions: log-probabilities in, one loss per row out. Refuses to know a model, a batch
layout or a config.

A pairwise loss is `f(policy, reference, *, settings)`; one without a reference is `f(policy, *, settings)`.
Each keyword is a field of the method's schema, where its default stands. A pair's rewards are beta times what
the loss compares: sums of log-ratios for most, means over tokens where it takes means.
"""

from .common import PairLogprobs, PairLoss, SingleLoss, pair_accuracy
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
    "pair_accuracy",
    "under_divergence",
    "weighted_sum",
    "wpo_weights",
]
