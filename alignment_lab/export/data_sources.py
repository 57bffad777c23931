"""The data behind a run, for its model card: what was read of which source, and under which licence.

A licence is that of the data set's own card: beside the files, in the Hub's cache, or asked of the Hub;
else what the lab's option of that data set says. Where none says it, it is unknown, and said to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..runtime.anonymity import anonymize
from ..runtime.paths import CONF

UNKNOWN = "unknown"
EMBEDDED = "apache-2.0"  # of the rows that come with the lab
HUB_TIMEOUT = 5.0  # seconds
_LISTED = re.compile(r"\b(MIT|Apache 2\.0|CC BY(?:-NC|-SA|-NC-SA)? \d\.\d|ODC-BY|CC0)\b")


@dataclass(frozen=True)
class SourceFacts:
    """One source of a run's rows."""

    name: str
    hub_id: str | None  # None where it is a file, or comes with the lab
    described: str  # where the rows come from: a Hub id with its revision, a file's name
    splits: str
    counts: Mapping[str, Any]  # of report.json
    license: str


def source_facts(
    spec: Mapping[str, Any], report: Mapping[str, Any], *, ask_hub: bool
) -> Iterator[SourceFacts]:
    """The sources of a run, in the order of its spec. `ask_hub`: also ask for cards that are not cached."""
    counted = (report.get("rows") or {}).get("sources") or {}
    for name, source in _sources(spec["data"]).items():
        is_hub = source["kind"] == "hub"
        path = str(source.get("path") or "")
        described = f"{path}@{source['revision']}" if source.get("revision") else path
        yield SourceFacts(
            name=anonymize(name),
            hub_id=path if is_hub else None,
            described=_describe(source["kind"], described, source.get("config")),
            splits=_splits(source),
            counts=counted.get(name) or {},
            license=_license(source["kind"], path, ask_hub=ask_hub),
        )


def _sources(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sources of a mixture; a single file or data set is a mixture of one."""
    if data.get("sources"):
        return {name: {"kind": "hub", **source} for name, source in data["sources"].items()}
    single = {"kind": data.get("source") or "hub", "train": data.get("split"), "eval": data.get("eval_split")}
    return {data["name"]: {**data, **single}}


def _describe(kind: str, path: str, config: str | None) -> str:
    if kind == "embedded":
        return "rows that come with alignment_lab"
    what = path if kind == "hub" else f"{Path(path).name}, a local file or folder"
    return f"{what} ({config})" if config else what


def _splits(source: Mapping[str, Any]) -> str:
    """`train`, or `train; test held out`."""
    if source["kind"] == "embedded":
        return ""
    heldout = source.get("eval") or (source.get("eval_path") and Path(source["eval_path"]).name)
    parts = [str(source["train"])] if source.get("train") else []
    return "; ".join([*parts, f"{heldout} held out"] if heldout else parts)


# ---- licences


def card_metadata(card: Path) -> dict[str, Any]:
    """The YAML at the head of a README.md; empty where there is none that can be read."""
    try:
        _, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
        metadata = yaml.safe_load(rest.partition("\n---")[0])
    except (OSError, yaml.YAMLError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def license_in(card: Path) -> str | None:
    """The licence that a card's metadata names."""
    metadata = card_metadata(card)
    named = metadata.get("license_name") if metadata.get("license") == "other" else None
    found = named or metadata.get("license")
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found) if found else None


def _license(kind: str, path: str, *, ask_hub: bool) -> str:
    if kind == "embedded":
        return EMBEDDED
    if kind == "local":
        place = Path(path).expanduser()
        folder = place if place.is_dir() else place.parent
        return license_in(folder / "README.md") or UNKNOWN
    asked = _asked_license(path) if ask_hub else None
    return _cached_license(path) or asked or _listed_license(path) or UNKNOWN


def _cached_license(repository: str) -> str | None:
    """Of the card that was fetched with the data set."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        card = try_to_load_from_cache(repository, "README.md", repo_type="dataset")
    except HFValidationError:
        return None
    return license_in(Path(card)) if isinstance(card, str) else None


def _asked_license(repository: str) -> str | None:
    """Of the card on the Hub; None where it cannot be asked, which is no reason to fail."""
    from huggingface_hub import HfApi

    try:
        card = HfApi().dataset_info(repository, timeout=HUB_TIMEOUT).card_data
        found = card.get("license") if card else None
    except Exception:  # each of the client's libraries has errors of its own
        return None
    return ", ".join(map(str, found)) if isinstance(found, list) else found


def _listed_license(repository: str) -> str | None:
    """As the first comment of the lab's own option for this data set says it."""
    for option in sorted((CONF / "data" / "source").glob("*.yaml")):
        text = option.read_text(encoding="utf-8")
        if re.search(rf"^path: {re.escape(repository)}$", text, re.MULTILINE):
            found = _LISTED.search(text.partition("\n")[0])
            return found[0] if found else None
    return None
