"""Whether what an experiment is made of is still what a run was trained on; what changed is named.

A file that differs is not yet a change: rows are compared as they are read, and a tokenizer by what it does,
so that a file that was only written anew is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import data
from ..config import DataSource, Experiment
from ..models.locate import existing_folder
from ..models.tokenizer import load_tokenizer, template_digest, tokenizer_digest
from ..runtime.errors import UserError
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from . import files
from .files import FileDigests, read_files

Recorded = Mapping[str, Any]  # provenance.json: content, files, rows
DATA = "data"  # what settings of files of rows begin with
REMEDY = "give another directory to train on what is there now: {}=DIRECTORY."


def find_changes(
    recorded: Recorded,
    spec: Experiment,
    folder: Path | None,
    splits: data.Splits | None = None,
    *,
    now: FileDigests | None = None,
) -> list[str]:
    """What is not as the run's provenance.json has it, a clause each, with the setting that names it.

    `folder`: that of the model, where it is known. `splits`: the rows, where they are read already; they are
    read here where a file of theirs differs. `now`: the digests of all files; without them a large file is
    compared only where its digest is kept.
    """
    now = now or read_files(spec, folder, read_large=False)
    there: FileDigests = recorded.get("files") or {}
    changes = _data_changes(recorded, spec, splits, now)
    for setting in (files.MODEL, files.ADAPTER, files.TEMPLATE):
        if differing := _differing(there, now, setting):
            changes.append(f"{_label(spec, setting)} has changed ({differing})")
    if folder is not None and (differing := _differing(there, now, files.TOKENIZER)):
        changes += _tokenizer_changes(recorded, spec, folder, differing)
    return changes


def refusal(run: RunDirectory, changes: list[str]) -> UserError:
    """The error of a run that would go on with other content."""
    return UserError(
        f"{run.path}: {'; '.join(changes)}: its checkpoints were trained on what was there before; "
        f"put that back, or {REMEDY.format('hydra.run.dir')}"
    )


def finished_elsewhere(
    run: RunDirectory, spec: Experiment, directory_key: str = "hydra.run.dir"
) -> str | None:
    """Of a finished run: the sentence that says that it was trained on other content than there is now.

    None where nothing changed. What is on the Hub is not asked for. `directory_key`: the remedy.
    """
    recorded = read_json(run.provenance_file) or {}
    changes = find_changes(recorded, spec, existing_folder(spec.model)) if recorded else []
    if not changes:
        return None
    remedy = REMEDY.format(directory_key)
    return f"{run.path}: {'; '.join(changes)}: this run finished on what was there before; {remedy}"


def _differing(there: FileDigests, now: FileDigests, setting: str) -> str:
    """`a.jsonl changed, b.jsonl is new`; empty where no file differs, or where they are not known."""
    before, here = there.get(setting), now.get(setting)
    if before is None or here is None:
        return ""
    names = [
        *(f"{name} changed" for name in before if here.get(name, before[name]) not in (before[name], None)),
        *(f"{name} is new" for name in here if name not in before),
        *(f"{name} is gone" for name in before if name not in here),
    ]
    return ", ".join(names)


def _data_changes(
    recorded: Recorded, spec: Experiment, splits: data.Splits | None, now: FileDigests
) -> list[str]:
    """Other rows than there were, by the setting whose files differ."""
    there: FileDigests = recorded.get("files") or {}
    settings = [setting for setting in there if setting.partition(".")[0] == DATA]
    differing = {setting: text for setting in settings if (text := _differing(there, now, setting))}
    before = (recorded.get("content") or {}).get("data")
    # of a stream no file is read whole, and no digest kept: the rows that the run needs are read
    is_local_stream = spec.data.streaming and not spec.data.is_on_hub()
    is_readable = splits is not None or settings or is_local_stream
    if before is None or (settings and not differing) or not is_readable:
        return []
    try:
        splits = splits or data.load_rows(spec)
    except UserError as error:
        return [str(error).rstrip(".")]
    if splits.digest == before:
        return []
    rows = recorded.get("rows") or {}
    if not differing:  # rows of the Hub, or of a stream
        return [f"{_label(spec, 'data.path')} has other rows ({_counts(rows, splits.read, 'train')})"]
    return [
        f"{_label(spec, setting)} has other rows ({text}; {_counts(rows, splits.read, _part(spec, setting))})"
        for setting, text in differing.items()
    ]


def _part(spec: Experiment, setting: str) -> str | None:
    """The part of the rows that a setting names, as Splits.read counts it; None where it names both."""
    if setting == DATA or spec.data.sources:
        return None
    return "heldout" if setting == "data.eval_path" else "train"


def _counts(before: Mapping[str, int], now: Mapping[str, int], part: str | None) -> str:
    """`24 rows before, 25 now`, of a part or of both."""
    parts = [part] if part else list(now)
    counts = [(sum(each.get(name, 0) for name in parts)) for each in (before, now)]
    if counts[0] == counts[1]:
        return f"{counts[0]} rows before and now, not the same or in another order"
    return f"{counts[0]} rows before, {counts[1]} now"


def _tokenizer_changes(recorded: Recorded, spec: Experiment, folder: Path, differing: str) -> list[str]:
    """Whether a tokenizer whose files differ makes other tokens, or only another text of the messages."""
    content = recorded.get("content") or {}
    tokenizer = load_tokenizer(spec.model, folder)
    if tokenizer_digest(tokenizer) == content.get("tokenizer"):
        return []
    what = "tokenizer" if template_digest(tokenizer) == content.get("chat_template") else "chat template"
    return [f"the {what} of {_label(spec, files.MODEL)} has changed ({differing})"]


def _label(spec: Experiment, setting: str) -> str:
    """The setting as it is typed."""
    model = spec.model
    if setting == files.MODEL:
        return f"model.path={model.path}" if model.path else f"model={model.name}"
    if setting == "data" or spec.data.source is DataSource.embedded:
        return f"data={spec.data.name}"
    if setting.partition(".")[0] == DATA:
        value: Any = spec.data
        for name in setting.split(".")[1:]:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        return f"{setting}={value}"
    values = {files.ADAPTER: model.init_adapter, files.TEMPLATE: model.chat_template}
    return f"{setting}={values[setting]}"
