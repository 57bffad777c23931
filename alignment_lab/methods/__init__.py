"""The one table of methods: how each turns rows into tokens, and tokens into a Trainer. A method is a module per data shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..data import tokenization
from ..training.context import TrainContext
from . import preference, reward, supervised, unpaired

__all__ = ["METHODS", "MethodSpec", "TrainContext"]

Row = dict[str, Any]


@dataclass(frozen=True)
class MethodSpec:
    """What run.py asks of a method."""

    tokenize: Callable[
        [Any, list[Row], int], tuple[list[Row], Counter[str]]
    ]  # tokenizer, rows, max_length
    trainer: Callable[[TrainContext], Any]  # see preference.trainer


METHODS: dict[str, MethodSpec] = {
    "sft": MethodSpec(tokenization.tokenize_conversations, supervised.trainer),
    "cpt": MethodSpec(tokenization.tokenize_texts, supervised.trainer),
    "reward": MethodSpec(tokenization.tokenize_pairs, reward.trainer),
    "kto": MethodSpec(tokenization.tokenize_unpaired, unpaired.trainer),
    "bco": MethodSpec(tokenization.tokenize_unpaired, unpaired.trainer),
    **{
        name: MethodSpec(tokenization.tokenize_pairs, preference.trainer)
        for name in preference.PAIRWISE_LOSSES
    },
}
