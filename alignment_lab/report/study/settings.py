"""The settings of several runs: which of them differ, how they are named and how their values are written.

A setting is a leaf of spec.yaml by its dotted key. Free settings (`config.is_free`) make no other experiment
and are no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...config import flatten, is_free
from .values import is_number

Spec = Mapping[str, Any]  # a spec.yaml, nested
Settings = Mapping[str, object]  # by dotted keys

MISSING = "absent"  # the value of a setting that a run does not have
SEED = "training.seed"
# Not a setting but what the settings led to: named where the data differs although its settings do not.
DATA_CONTENT = "data.content"


def compared_settings(spec: Spec) -> dict[str, object]:
    """The settings by dotted keys, without the free ones."""
    return {key: value for key, value in flatten(spec).items() if not is_free(key)}


def varied_keys(specs: Iterable[Spec]) -> list[str]:
    """The dotted keys whose values differ among `specs`, without those that follow from another key.

    `method.name` decides the rest of `method` as long as its options were left alone, so an option is listed
    beside it only where it varies within one method. Across groups nothing is dropped: a learning rate that
    changes with the method is a difference of its own.
    """
    runs = [compared_settings(spec) for spec in specs if spec]
    keys = dict.fromkeys(key for settings in runs for key in settings)
    varied = [key for key in keys if len({canonical(settings.get(key, MISSING)) for settings in runs}) > 1]
    independent = [
        key for key in varied if _group_name(key) not in varied or not _follows(key, _group_name(key), runs)
    ]
    return sorted(
        independent,
        key=lambda key: (key != "method.name", not key.endswith(".name"), key.split(".")[0] != "method"),
    )


def _group_name(key: str) -> str:
    """The key that may decide the value of `key`: the name of its group."""
    if key == "plugin_sha256":  # of the module that defines the method
        return "method.name"
    return "" if key.endswith(".name") else f"{key.split('.')[0]}.name"


def _follows(key: str, decider: str, runs: Iterable[Settings]) -> bool:
    """Whether equal values of `decider` always come with equal values of `key`."""
    values: dict[str, set[str]] = {}
    for settings in runs:
        values.setdefault(canonical(settings.get(decider)), set()).add(canonical(settings.get(key, MISSING)))
    return all(len(distinct) == 1 for distinct in values.values())


def canonical(value: object) -> str:
    """A value as text that is equal for equal values: 1 and 1.0 are."""
    return repr(float(value)) if is_number(value) else json.dumps(value, sort_keys=True, default=str)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`method` for `method.name`, `seed` for `training.seed`: the last part of a key where it is unique."""
    if DATA_CONTENT in keys:
        return {**short_names([key for key in keys if key != DATA_CONTENT]), DATA_CONTENT: "rows"}
    short = {key: key.removesuffix(".name") if key.endswith(".name") else key.split(".")[-1] for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def format_label(settings: Settings, names: Mapping[str, str]) -> str:
    """`dpo, beta=0.1`: the settings in one line, without those that the run does not have."""
    values = {key: format_setting(value) for key, value in settings.items() if value != MISSING}
    return ", ".join(
        value if key.endswith(".name") else f"{names[key]}={value}" for key, value in values.items()
    )


def format_setting(value: object) -> str:
    """A value as the user would type it."""
    return "null" if value is None else value if isinstance(value, str) else json.dumps(value)
