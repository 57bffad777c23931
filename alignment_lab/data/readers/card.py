"""What the README.md of a downloaded dataset says: which files are which split, and the names of classes."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .layout import Splits, refuse_dangling
from .places import Setting, listed


@dataclass(frozen=True)
class Card:
    """The part of a README.md that is about files."""

    configs: dict[str, Any] = field(default_factory=dict)  # name -> data_files
    features: dict[str, dict[str, Any]] = field(default_factory=dict)  # name of a config -> its features
    default: str | None = None

    def chosen(self, config: str | None) -> str | None:
        """The config that is read where `config` is asked for; None where several are there."""
        names = list(self.configs or self.features)
        alone = names[0] if len(names) == 1 else None
        return config or self.default or ("default" if "default" in names else alone)

    def features_of(self, config: str | None) -> dict[str, Any]:
        """The features of the config that is read."""
        return self.features.get(self.chosen(config) or "", {})


def read_card(folder: Path) -> Card:
    """The card of a folder, empty where there is none."""
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        content = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---")) if text[:3] == "---" else None
    except (OSError, ValueError, yaml.YAMLError):
        return Card()
    content = content if isinstance(content, dict) else {}
    entries = [entry for entry in _entries(content.get("configs")) if entry.get("data_files")]
    default = next((entry for entry in entries if entry.get("default")), None)
    return Card(
        {_name(entry): entry["data_files"] for entry in entries},
        {_name(entry): _features(entry.get("features")) for entry in _entries(content.get("dataset_info"))},
        _name(default) if default else None,
    )


def card_splits(setting: Setting, folder: Path, card: Card, config: str | None, config_key: str) -> Splits:
    """The files of each split of a config. Raises DataError where it is not clear which, or files lack."""
    name = card.chosen(config)
    if name not in card.configs:
        what = f"has no config {name!r}" if name else "has several configs"
        raise setting.error(f"{what}; set {config_key} to one of {listed(card.configs, 20)}.")
    data_files = _by_split(card.configs[name])
    return {split: _matching(setting, folder, patterns) for split, patterns in data_files.items()}


def _by_split(data_files: Any) -> dict[str, list[str]]:
    """`data_files` as the Hub takes it: a pattern, patterns, or patterns by split."""
    if isinstance(data_files, Mapping):
        return {str(split): _patterns(value) for split, value in data_files.items()}
    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, Mapping) for entry in entries):
        return {str(entry.get("split", "train")): _patterns(entry.get("path")) for entry in entries}
    return {"train": _patterns(entries)}


def _patterns(value: Any) -> list[str]:
    return [str(pattern) for pattern in (value if isinstance(value, list) else [value])]


def _matching(setting: Setting, folder: Path, patterns: list[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        names = glob.glob(str(Path(glob.escape(str(folder))) / pattern), recursive=True)
        found = [Path(name) for name in sorted(names)]
        refuse_dangling(setting, found)
        files += [file for file in found if file.is_file()]
        if not found:
            raise setting.error(f"its README.md names {pattern}, of which no file is here; fetch it whole.")
    return list(dict.fromkeys(files))


def _entries(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("config_name", "default"))


def _features(listing: Any) -> dict[str, Any]:
    """The features of a card, as `datasets` writes them into a file."""
    return {str(entry.get("name")): _feature(entry) for entry in _entries(listing)}


def _feature(entry: Mapping[str, Any]) -> Any:
    for word in ("list", "sequence"):
        if word in entry:
            return {"_type": "List", "feature": _inner(entry[word])}
    if "struct" in entry:
        return _features(entry["struct"])
    return _inner(entry.get("dtype"))


def _inner(value: Any) -> Any:
    if isinstance(value, list):
        return _features(value)
    if isinstance(value, Mapping) and "class_label" in value:
        names = (value["class_label"] or {}).get("names") or {}
        ordered = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names
        return {"_type": "ClassLabel", "names": [str(name) for name in ordered]}
    return _feature(value) if isinstance(value, Mapping) else {"_type": "Value", "dtype": value}
