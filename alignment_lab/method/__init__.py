"""The one table of methods: how each turns rows into tokens, and tokens into a Trainer. A method is a module per data shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..data import tokenise
from . import preference, reward, supervised, unpaired
from .setting import Setting

__all__ = ["METHODS", "Procedure", "Setting"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Procedure:
    """What run.py asks of a method."""

    tokenise: Callable[[Any, list[Row], int], tuple[list[Row], Counter[str]]]  # tokenizer, rows, max_length
    trainer: Callable[[Setting], Any]  # see preference.trainer


METHODS: dict[str, Procedure] = {
    "sft": Procedure(tokenise.conversations, supervised.trainer),
    "cpt": Procedure(tokenise.texts, supervised.trainer),
    "reward": Procedure(tokenise.pairs, reward.trainer),
    "kto": Procedure(tokenise.unpaired, unpaired.trainer),
    "bco": Procedure(tokenise.unpaired, unpaired.trainer),
    **{name: Procedure(tokenise.pairs, preference.trainer) for name in preference.OBJECTIVES},
}
