"""The one table of methods: how each turns rows into tokens, and tokens into a loss. A module per shape of
data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import Format, Method, Pairwise
from ..config.methods import PAIRWISE_SCHEMAS
from ..data import tokenization
from ..data.token_cache import Tokenize
from ..training import Objective, TrainContext
from .preference import PreferenceObjective
from .reward import RewardObjective
from .supervised import SupervisedObjective
from .unpaired import BCOObjective, KTOObjective

__all__ = ["METHODS", "MethodSpec", "method_spec"]


@dataclass(frozen=True)
class MethodSpec:
    """What a run needs of a method besides its settings."""

    tokenize: Tokenize
    objective: Callable[[TrainContext], Objective]


PAIRWISE_SPEC = MethodSpec(tokenization.tokenize_pairs, PreferenceObjective)
METHODS: dict[str, MethodSpec] = {
    "sft": MethodSpec(tokenization.tokenize_conversations, SupervisedObjective),
    "cpt": MethodSpec(tokenization.tokenize_texts, SupervisedObjective),
    "reward": MethodSpec(tokenization.tokenize_pairs, RewardObjective),
    "kto": MethodSpec(tokenization.tokenize_unpaired, KTOObjective),
    "bco": MethodSpec(tokenization.tokenize_unpaired, BCOObjective),
    **dict.fromkeys(PAIRWISE_SCHEMAS, PAIRWISE_SPEC),
}


def method_spec(method: Method) -> MethodSpec:
    """The row of a method; every method on pairs that is no reward model, a user's own included, has the
    pairwise one.
    """
    if method.format is Format.preference and isinstance(method, Pairwise):
        return PAIRWISE_SPEC
    return METHODS[method.name]
