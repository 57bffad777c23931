"""Takes the paths of this machine out of the configs that are exported: libraries write where they read
from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.anonymity import anonymize
from ..runtime.files import read_json, write_json
from .base import base_name

CONFIGS = ("*config.json", "special_tokens_map.json")
BASE = "base_model_name_or_path"  # of adapter_config.json


def scrub_configs(folder: Path, spec: Mapping[str, Any]) -> None:
    """Rewrite the configs in `folder` that name a path of this machine; an adapter names its base as on the
    Hub, or by its folder's name. A file that is a link elsewhere is replaced, not changed.
    """
    for file in sorted(path for pattern in CONFIGS for path in folder.glob(pattern)):
        config = read_json(file)
        scrubbed = _scrub(config)
        if isinstance(scrubbed, dict) and _is_path(config.get(BASE)):
            scrubbed[BASE] = base_name(spec)[0]
        if scrubbed != config:
            write_json(file, scrubbed)


def _scrub(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrub(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_scrub(inner) for inner in value]
    return anonymize(value) if _is_path(value) else value


def _is_path(value: Any) -> bool:
    """Whether a config's value is an absolute path, and not a token such as `/` or `</s>`."""
    return isinstance(value, str) and len(value) > 1 and os.path.isabs(value) and value.count("/") > 1
