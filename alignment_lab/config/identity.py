"""Which experiment this is: what makes it another one, and what may change while it stays the same and goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# The settings that change no number that is trained, or only its rounding: a run may go on with other ones. A group stands for all in it.
FREE = (
    "name",  # what the run is called
    "action",
    "tracking",  # who is told of it
    "plan",
    "parallel.name",  # how many devices share the work, and who holds which part: losses are those of one process
    "parallel.processes",
    "parallel.nodes",
    "parallel.sharding",
    "training.micro_tokens",  # rows of one forward pass
    "training.gradient_checkpointing",  # activations kept, or computed again
    "training.dataloader_num_workers",  # who lays rows out
    "training.watchdog_minutes",  # what is done when something goes wrong
    "training.on_nonfinite",
    "training.max_nonfinite",
    "training.logging_steps",  # how often something is looked at or kept
    "training.eval_steps",
    "training.save_steps",
    "training.save_total_limit",
    "eval.objective",  # what a search makes of it
    "eval.direction",
)
NOT_SETTINGS = ("defaults",)  # what a spec.yaml has besides
NAMED = 5  # differences that a sentence names
SHOWN = 40  # characters of a value in a sentence


def identity(plain: Mapping[str, Any]) -> str:
    """Twelve hex digits from every setting that can change a trained number."""
    return hashlib.sha256(json.dumps(dict(_fixed(plain)), sort_keys=True).encode()).hexdigest()[:12]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes them two experiments: `training.seed is 42 there and 43 here`, by dotted names in the order of `now`."""
    there, here = dict(_fixed(before)), dict(_fixed(now))
    names = [name for name in {**here, **there} if there.get(name, ...) != here.get(name, ...)]
    return [f"{name} is {_said(there, name)} there and {_said(here, name)} here" for name in names]


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why they are two experiments, for a sentence: the first differences, and how many more there are."""
    found = differences(before, now) if before else []
    said = ", ".join(found[:NAMED]) + (f", and {len(found) - NAMED} more" if len(found) > NAMED else "")
    return said or "its settings are the same, and were written down by another version of the lab"


def _fixed(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting that is not free, by its dotted name."""
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if name in FREE or name in NOT_SETTINGS:
            continue
        if isinstance(value, Mapping) and value:
            yield from _fixed(value, f"{name}.")
        else:
            yield name, value


def _said(values: Mapping[str, Any], name: str) -> str:
    """A value as it would be typed, cut where it is long."""
    if name not in values:
        return "not set"
    value = values[name]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}[...]"
