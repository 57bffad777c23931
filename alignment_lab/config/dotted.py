"""Nested settings by dotted keys: `{"training": {"seed": 1}}` is `training.seed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys. Lists stay whole, and an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def prefixes(key: str) -> Iterator[str]:
    """`model`, `model.shape` and `model.shape.layers` of `model.shape.layers`."""
    return accumulate(key.split("."), "{}.{}".format)
