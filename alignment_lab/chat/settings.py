"""What a talk is set to, as `key=value` on the command line and in `/set`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..config.validation import SpecError, did_you_mean, require

MAX_PORT = 65535


@dataclass(frozen=True)
class ChatSettings:
    """How answers are drawn."""

    temperature: float = 0.7  # 0: the most likely token, always
    top_p: float = 0.9
    max_new_tokens: int = 512
    seed: int = 0  # the same seed, models and messages give the same talk

    def __post_init__(self) -> None:
        is_finite = 0 <= self.temperature < math.inf
        require(is_finite, "temperature", self.temperature, "must be 0 or more; 0 is greedy.")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1.")
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "must be above 0.")
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more.")

    def __str__(self) -> str:
        return " ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


@dataclass(frozen=True)
class StartSettings:
    """What is decided before the models are loaded."""

    system: str | None = None  # the system prompt; null: that of the run's rows, where they share one
    host: str = "127.0.0.1"  # of the endpoint
    port: int = 8000

    def __post_init__(self) -> None:
        require(0 < self.port <= MAX_PORT, "port", self.port, f"must be between 1 and {MAX_PORT}.")


ENDPOINT_KEYS = ("host", "port")
CHAT_KEYS = tuple(field.name for field in fields(ChatSettings))
START_KEYS = tuple(field.name for field in fields(StartSettings))
NUMBERS = {"temperature": float, "top_p": float, "max_new_tokens": int, "seed": int, "port": int}
MODEL_FIELDS = ("dtype", "attention", "chat_template", "trust_remote_code", "revision")
# as train.py has them: how the models are loaded
EXPERIMENT_KEYS = (*(f"model.{field}" for field in MODEL_FIELDS), "parallel.device")


@dataclass(frozen=True)
class CommandLine:
    """The words of a command line, sorted."""

    models: list[str]
    chat: ChatSettings
    start: StartSettings
    given: list[str]  # keys of the settings that were given
    overrides: list[str]  # of the experiment


def read_words(words: Sequence[str]) -> CommandLine:
    """Sort the words of a command line. Raises SpecError.

    A word with `=` that is there as a file or a folder is a model: folders of sweeps have such names.
    """
    models, overrides = [], []
    given: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or Path(word).expanduser().exists():
            models.append(word)
        elif key == "model":
            models.append(value)
        elif key in EXPERIMENT_KEYS:
            overrides.append(word)
        elif key in CHAT_KEYS or key in START_KEYS:
            given[key] = _read(key, value)
        else:
            raise _unknown(key, value, [*CHAT_KEYS, *START_KEYS, *EXPERIMENT_KEYS])
    chat = ChatSettings(**{key: value for key, value in given.items() if key in CHAT_KEYS})
    start = StartSettings(**{key: value for key, value in given.items() if key in START_KEYS})
    return CommandLine(models, chat, start, list(given), overrides)


def change(settings: ChatSettings, words: Sequence[str]) -> ChatSettings:
    """`settings` with these `key=value` words, of sampling alone. Raises SpecError."""
    given = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise SpecError(f"/set {word}: give key=value, with a key of {', '.join(CHAT_KEYS)}.")
        if key not in CHAT_KEYS:
            raise _unknown(key, value, list(CHAT_KEYS))
        given[key] = _read(key, value)
    return replace(settings, **given)


def _read(key: str, value: str) -> Any:
    kind = NUMBERS.get(key)
    if kind is None:
        return value
    try:
        return kind(value)
    except ValueError:
        name = "a whole number" if kind is int else "a number"
        raise SpecError(f"{key}={value}: must be {name}.") from None


def _unknown(key: str, value: str, keys: list[str]) -> SpecError:
    near = did_you_mean(key, keys) or f"; there are {', '.join(keys)}."
    return SpecError(f"{key}={value}: no such setting{near}")
