"""The identity of an experiment: which settings make another one, and which may change when a run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..runtime.files import json_digest
from .dotted import flatten, prefixes
from .groups.evaluation import Measure

# Settings that change no trained number, or only its rounding: a run may be resumed with other values.
# A group stands for all its keys.
FREE_SETTINGS = (
    "name",  # a label
    "action",
    "plugin",  # where its source lies: plugin_sha256 says what it is
    "tracking",  # where metrics are sent
    "plan",
    "preview",
    "model.kernels",  # fused or stock: the same function
    "parallel.name",  # how many devices share the work, and how: losses are those of one process
    "parallel.processes",
    "parallel.nodes",
    "parallel.sharding",
    "training.micro_tokens",  # rows per forward pass
    "training.gradient_checkpointing",  # activations are kept, or recomputed
    "training.dataloader_num_workers",  # which process lays out batches
    "training.watchdog_minutes",  # what happens when something goes wrong
    "training.push_to_hub",  # where the model is sent
    "training.hub_model_id",
    "training.hub_strategy",
    "training.hub_private_repo",
    "training.hub_revision",
    "training.on_nonfinite",
    "training.max_nonfinite",
    "training.logging_steps",  # how often something is logged, evaluated or saved
    "training.eval_steps",
    "training.save_steps",
    "training.save_total_limit",
    "eval.objective",  # what a search optimizes
    "eval.direction",
    # of what is measured of a model that is trained: an evaluation has an identity of its own
    *(f"eval.{name}" for name in ("models", "before", "measures", "after", "reference", "own_data")),
    *(f"eval.{measure.name}" for measure in Measure),
)
NOT_SETTINGS = ("defaults", "hydra")  # other keys of a spec.yaml
MAX_DIFFERENCES = 5  # that a sentence lists
MAX_VALUE_LENGTH = 40  # characters of a value in a sentence

_FREE = frozenset((*FREE_SETTINGS, *NOT_SETTINGS))


def is_free(key: str) -> bool:
    """Whether a setting, by its dotted key, makes no other experiment; a key inside a free group is free."""
    return not _FREE.isdisjoint(prefixes(key))


def identity(settings: Mapping[str, Any]) -> str:
    """Twelve hex digits from every setting that can change a trained number."""
    return json_digest(_fixed_settings(settings))[:12]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes them two experiments, in the order of `now`: `training.seed is 42 there and 43 here`."""
    there, here = _fixed_settings(before), _fixed_settings(now)
    keys = [key for key in {**here, **there} if there.get(key, ...) != here.get(key, ...)]
    labels = {"plugin_sha256": f"plugin_sha256 (of plugin={now.get('plugin') or before.get('plugin')})"}
    return [
        f"{labels.get(key, key)} is {_format_value(there, key)} there and {_format_value(here, key)} here"
        for key in keys
    ]


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why they are two experiments, for a sentence: the first differences, and how many more there are."""
    changed = differences(before, now) if before else []
    if not changed:
        return "its settings are the same, and were written by another version of the lab"
    more = f", and {len(changed) - MAX_DIFFERENCES} more" if len(changed) > MAX_DIFFERENCES else ""
    return ", ".join(changed[:MAX_DIFFERENCES]) + more


def _fixed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that is not free, by its dotted key."""
    return {key: value for key, value in flatten(settings).items() if not is_free(key)}


def _format_value(settings: Mapping[str, Any], key: str) -> str:
    """A value as the user would type it, shortened where it is long."""
    if key not in settings:
        return "not set"
    value = settings[key]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}[...]"
