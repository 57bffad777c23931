"""The files behind an experiment's settings, and their digests. Reads no tensor, and imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import TEMPLATES, Experiment
from ..data.readers import source_files
from ..models.facts import adapter_facts, canonical, model_facts
from ..runtime.digests import digest_files
from ..runtime.files import read_json

FileDigests = dict[str, dict[str, str | None]]
"""By setting, or `tokenizer`: the sha256 of each file by its name; None where it was not read.

Of config.json and adapter_config.json it is that of the settings that change a number.
"""
MODEL, TOKENIZER, ADAPTER, TEMPLATE = "model", "tokenizer", "model.init_adapter", "model.chat_template"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole, or in shards that an index lists
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "*.model",
    "*.tiktoken",
)


def read_files(spec: Experiment, folder: Path | None, *, read_large: bool = True) -> FileDigests:
    """The digests of all files that this experiment's numbers depend on.

    `folder`: that of the model, where it is known. `read_large`: see `runtime.digests`.
    """
    groups = _files(spec, folder)
    files = [file for group in groups.values() for file in group.values()]
    digests = dict(zip(files, digest_files(files, read_large=read_large), strict=True))
    return {
        setting: {name: _settings_digest(file) or digests[file] for name, file in group.items()}
        for setting, group in groups.items()
    }


def weight_digests(folder: Path) -> dict[str, str | None]:
    """The digests of a model's weights, by the names of their files."""
    files = _weight_files(folder)
    return dict(zip(files, digest_files(list(files.values())), strict=True))


def _files(spec: Experiment, folder: Path | None) -> dict[str, dict[str, Path]]:
    """By setting, the files that are there, by name."""
    groups = source_files(spec.data)
    if folder is not None:
        code = sorted(folder.glob("*.py")) if spec.model.trust_remote_code else []
        tokenizer = [file for pattern in TOKENIZER_FILES for file in sorted(folder.glob(pattern))]
        groups[MODEL] = {**_weight_files(folder), **_by_name([folder / CONFIG, *code])}
        groups[TOKENIZER] = _by_name(tokenizer)
    if spec.model.init_adapter:
        adapter = Path(spec.model.init_adapter).expanduser()
        groups[ADAPTER] = _by_name([adapter / name for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS)])
    template = spec.model.chat_template
    if template and "{" not in template:
        groups[TEMPLATE] = _by_name([TEMPLATES.get(template, Path(template).expanduser())])
    return groups


def _by_name(files: Iterable[Path]) -> dict[str, Path]:
    return {file.name: file for file in files if file.is_file()}


def _weight_files(folder: Path) -> dict[str, Path]:
    """The files that transformers loads weights from."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return {name: folder / name}
        if index := _read(folder / f"{name}.index.json"):
            return _by_name(folder / shard for shard in sorted(set(index.get("weight_map", {}).values())))
    return {}


def _settings_digest(file: Path) -> str | None:
    """Of a config, the digest of what changes a number; None for another file."""
    facts = {CONFIG: model_facts, ADAPTER_CONFIG: adapter_facts}.get(file.name)
    content = _read(file) if facts else None
    return hashlib.sha256(canonical(facts(content)).encode()).hexdigest() if facts and content else None


def _read(file: Path) -> Mapping[str, Any] | None:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
