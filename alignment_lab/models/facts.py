"""What of a config.json and of an adapter_config.json changes a number; the rest are names and versions.

Of plain dictionaries, without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

COSMETIC_KEYS = (  # of a model's config
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "_name_or_path",
    "_attn_implementation",
)
COSMETIC_ADAPTER_KEYS = (  # of an adapter's config; any other key, of peft's later versions too, counts
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
)


def model_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model's config that change what it computes; the ids of special tokens do not."""
    return {
        key: value
        for key, value in config.items()
        if key not in COSMETIC_KEYS and not key.endswith("token_id")
    }


def adapter_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an adapter's config that change what it computes: scales and their patterns, layers,
    variants, biases. What is not set is left out: another version of peft may not know the key.
    """
    return {
        key: sorted(value, key=str) if isinstance(value, list | set | frozenset) else value
        for key, value in config.items()
        if key not in COSMETIC_ADAPTER_KEYS and value not in (None, False, [], {})
    }


def canonical(facts: Mapping[str, Any]) -> str:
    """Facts as text, the same whatever the order of their keys."""
    return json.dumps(facts, sort_keys=True, default=str)
