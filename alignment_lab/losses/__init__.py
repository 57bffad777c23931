"""The objectives as pure functions: log-probabilities in, one loss per row out. Knows no model, no batch layout, no config.

With a reference, `f(policy, reference, *, knobs)`; without, `f(policy, *, knobs)`. What is a keyword here is a setting of the same name in
`spec.method`, with the same default. A pair's rewards are beta times what the objective compares: sums of log-ratios for most, means over
tokens where it takes means, f' of the ratio under another divergence.
"""

from .batch import PairLogprobs, PairLoss, SingleLoss, accuracy
from .mixed import MIXABLE, length_damped_sum, mpo, weighted_sum, wpo_weights
from .reference_free import cpo, orpo, simpo
from .referenced import (
    aot,
    apo_down,
    apo_zero,
    bco_pair,
    discopop,
    dpo,
    dpo_norm,
    exo,
    hinge,
    ipo,
    ld_dpo,
    nca,
    robust_dpo,
    sppo,
)
from .reward_model import reward
from .unpaired import balanced_weights, bco, kto, kto_kl

__all__ = [
    "MIXABLE",
    "PairLogprobs",
    "PairLoss",
    "SingleLoss",
    "accuracy",
    "aot",
    "apo_down",
    "apo_zero",
    "balanced_weights",
    "bco",
    "bco_pair",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "exo",
    "hinge",
    "ipo",
    "kto",
    "kto_kl",
    "ld_dpo",
    "length_damped_sum",
    "mpo",
    "nca",
    "orpo",
    "reward",
    "robust_dpo",
    "simpo",
    "sppo",
    "weighted_sum",
    "wpo_weights",
]
