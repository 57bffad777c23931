"""The names of sweeps and the folders of cells, from their overrides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, read_write

from ..config.compose import folder_name
from ..runtime.library_internals import overrides_dirname
from ..runtime.redaction import redact_data

DEFAULT_SUBDIR = "${cell:${hydra.job.override_dirname}}"  # hydra.sweep.subdir of conf/hydra/lab.yaml
EXCLUDE_KEYS = "hydra.job.config.override_dirname.exclude_keys"
MAX_NAME_LENGTH = 60  # characters of the swept overrides in a sweep's name


def sweep_name(overrides: Iterable[str] | None, params: Mapping[str, Any] | None = None) -> str:
    """`method=dpo,kto_beta=0.01,0.1-3f2a9c`: the swept overrides, and six digits of a hash of all.

    The order of the overrides does not matter.
    """
    from_params = [f"{key}={value}" for key, value in (params or {}).items()]
    texts = sorted([*map(str, overrides or []), *from_params])
    parsed = OverridesParser.create().parse_overrides(texts)
    swept = [text for text, override in zip(texts, parsed, strict=True) if override.is_sweep_override()]
    name = folder_name("_".join(redact_data(swept)) or "one")[:MAX_NAME_LENGTH].rstrip("_")
    return f"{name}-{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:6]}"


def exclude_from_names(config: DictConfig, keys: Iterable[str]) -> None:
    """Leave these keys out of the cells' folder names.

    Hydra composes each cell with the override that this adds.
    """
    with read_write(config):
        config.hydra.overrides.hydra.append(f"{EXCLUDE_KEYS}=[{','.join(keys)}]")


def cell_folder(config: DictConfig, loader: Any, overrides: Sequence[str]) -> str:
    """A cell's folder in the sweep, by hydra.sweep.subdir; `loader` is Hydra's ConfigLoader.

    Where the subdir is the lab's own it is worked out here: Hydra would compose the cell for it.
    """
    settings = OmegaConf.to_container(config.hydra.sweep)
    if settings["subdir"] != DEFAULT_SUBDIR:  # type: ignore[index, call-overload]
        return str(loader.load_sweep_config(config, list(overrides)).hydra.sweep.subdir)
    dirname = config.hydra.job.config.override_dirname
    excluded = [
        *dirname.exclude_keys,
        *(key for line in config.hydra.overrides.hydra for key in _excluded_keys(line)),
    ]
    parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
    return folder_name(overrides_dirname(parsed, excluded, dirname.item_sep, dirname.kv_sep))


def _excluded_keys(line: str) -> list[str]:
    """The keys of an override that `exclude_from_names` added."""
    key, _, value = line.partition("=")
    return value.strip("[]").split(",") if key == EXCLUDE_KEYS else []
