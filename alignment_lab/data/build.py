"""A mixture as one folder: its rows as JSON lines that `data=local` takes, and a manifest with their digest.

The digest is of the rows alone. The same sources and settings give the same one in every process, with any
number of workers, on any machine, wherever the files lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..config import Experiment, to_plain
from ..runtime.errors import UserError
from ..runtime.files import file_digest, json_digest, write_atomic
from ..runtime.folders import refuse_new_at_root
from ..runtime.publishing import publish_directory
from .loading import load_rows
from .rows import Row
from .split import Splits

MANIFEST = "manifest.yaml"  # no ending of rows: `data=local` reads the others
SHARD_ROWS = 100_000
BLOCK = 4096  # rows that are written at a time
WHAT_IT_WAS_MADE_FROM = ("sources", "rows", "mixture_seed", "eval_fraction", "clean")  # settings of `data`

Manifest = dict[str, Any]


def build(spec: Experiment, out: Path) -> tuple[Splits, Manifest]:
    """Write the rows of an experiment's data into the folder `out`.

    Rows have the columns of the method's format; those to train on are in the order of sources, files and
    lines, repeats included. Raises UserError where `out` holds something else, DataError as `load_rows`.
    """
    refuse_new_at_root(out, f"out={out}")
    earlier = _earlier(out)
    splits = load_rows(spec, shuffled=False)
    partial = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        shards = {
            name: sha256
            for split, rows in (("train", splits.train), ("test", splits.heldout))
            for name, sha256 in _write_shards(partial, split, rows)
        }
        manifest = _manifest(spec, splits, shards)
        if earlier and earlier["digest"] != manifest["digest"]:
            raise UserError(
                f"out={out}: holds another mixture ({earlier['digest'][:12]}, this is "
                f"{manifest['digest'][:12]}); give another folder, or remove it."
            )
        if not earlier:
            _write_manifest(partial, manifest)
            publish_directory(partial, out.resolve())
    except OSError as error:
        raise UserError(
            f"out={out}: cannot be written ({error.strerror or error}); free space, or give another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return splits, manifest


def _earlier(out: Path) -> Manifest | None:
    """The manifest of what was built there before; None where nothing is. Raises UserError for all else."""
    import yaml

    if not out.exists():
        return None
    try:
        manifest = yaml.safe_load((out / MANIFEST).read_text(encoding="utf-8"))
        built: Manifest = {"digest": manifest["digest"], "shards": dict(manifest["shards"])}
        changed = [name for name, sha256 in built["shards"].items() if file_digest(out / name) != sha256]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise UserError(
            f"out={out}: exists, and is no mixture that was built; give another folder."
        ) from None
    if changed:
        raise UserError(f"out={out}: {changed[0]} was changed since it was built; give another folder.")
    return built


def _write_shards(folder: Path, split: str, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(name, sha256) of each file."""
    count = -(-len(rows) // SHARD_ROWS)
    lines = map(encode_row, rows)
    for number in range(count):
        name = f"{split}-{number:05}-of-{count:05}.jsonl"
        digest = hashlib.sha256()
        with (folder / name).open("wb") as file:
            for start in range(0, SHARD_ROWS, BLOCK):
                block = b"".join(islice(lines, min(BLOCK, SHARD_ROWS - start)))
                digest.update(block)
                file.write(block)
        yield name, digest.hexdigest()


def encode_row(row: Row) -> bytes:
    """A row as one line of JSON: readable, and escaped where it holds half a character."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def _manifest(spec: Experiment, splits: Splits, shards: dict[str, str]) -> Manifest:
    data = to_plain(spec)["data"]
    return {
        "digest": json_digest(shards),
        "format": spec.method.format.name,
        "rows": {"train": len(splits.train), "test": len(splits.heldout)},
        "shards": shards,
        "counts": {one.name: one.as_dict() for one in splits.sources},
        "settings": data if not spec.data.sources else {key: data[key] for key in WHAT_IT_WAS_MADE_FROM},
    }


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    import yaml

    text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=110)
    write_atomic(folder / MANIFEST, f"# Made by: python -m alignment_lab.data build\n{text}")
