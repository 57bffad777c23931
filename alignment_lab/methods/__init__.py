"""The one table of methods: how each turns tokens into a loss. A module per shape of data."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Format, Method, Pairwise
from ..config.methods import PAIRWISE_SCHEMAS
from ..training import Objective, TrainContext
from .preference import PreferenceObjective
from .reward import RewardObjective
from .supervised import SupervisedObjective
from .unpaired import BCOObjective, KTOObjective

__all__ = ["METHODS", "objective_class"]

MakeObjective = Callable[[TrainContext], Objective]
METHODS: dict[str, MakeObjective] = {
    "sft": SupervisedObjective,
    "cpt": SupervisedObjective,
    "reward": RewardObjective,
    "kto": KTOObjective,
    "bco": BCOObjective,
    **dict.fromkeys(PAIRWISE_SCHEMAS, PreferenceObjective),
}


def objective_class(method: Method) -> MakeObjective:
    """The row of a method; every method on pairs that is no reward model, a user's own included, has the
    pairwise one.
    """
    if method.format is Format.preference and isinstance(method, Pairwise):
        return PreferenceObjective
    return METHODS[method.name]
