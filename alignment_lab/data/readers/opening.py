"""The doors of the readers: a source's part as rows, as stretches to read at once, and as files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...config import Data, DataSource, Source
from ..reasons import DataError
from ..rows import RawRow
from .card import Card, card_splits, read_card
from .columnar import read_arrow, read_parquet, split_parquet
from .hub import open_hub
from .json_files import read_json, split_json
from .kinds import UNPACK_ERRORS, compression_of, kind_of, read_head
from .layout import UNNAMED, Splits, choose_split, find_splits, is_saved, one_kind, unread_files
from .places import DAMAGED, DataFile, Key, Part, Setting, Skip, Span, listed
from .tables import read_table, read_text

EMBEDDED = Path(__file__).parents[1] / "embedded"
EMBEDDED_FILES = {"train": EMBEDDED / "train.jsonl", "eval": EMBEDDED / "test.jsonl"}

PARTS: tuple[Part, ...] = ("train", "eval")
COLUMNAR = ("parquet", "arrow")


class Reader(NamedTuple):
    """How files of one kind are read, and how one is read by several processes; None: by one."""

    read: Callable[[DataFile, Span | None, Skip], Iterator[RawRow]]
    split: Callable[[DataFile, int], list[Span]] | None = None


READERS = {
    "json": Reader(read_json, split_json),
    "csv": Reader(read_table),
    "tsv": Reader(read_table),
    "text": Reader(read_text),
    "parquet": Reader(read_parquet, split_parquet),
    "arrow": Reader(read_arrow),
}


def open_rows(
    source: Source,
    part: Part,
    *,
    key: Key,
    start: int = 0,
    span: Span | None = None,
    streaming: bool = False,
) -> Iterator[RawRow] | None:
    """The rows of a source's part in their order; None where it has no such part.

    `key`: the dotted key of each of the source's settings, for sentences. `start`: rows that are passed over.
    `span`: one of `spans`, read alone. `streaming`: rows of the Hub are fetched as they are read. Raises
    DataError at once where the files cannot be told, and while it is read where a file ends its rows.
    """
    if span is not None:
        return _read(span.file, span if span.end is not None else None, Skip())
    if source.kind is DataSource.hub:
        split = source.train if part == "train" else source.eval
        if split is None:
            return None
        rows = open_hub(source, split, key, streaming=streaming, start=start)
        return _not_empty(rows, Setting(key("path"), str(source.path))) if not start else rows
    files = _files(source, part, key)
    if files is None:
        return None
    skip = Skip(start)
    rows = (row for file in files for row in _read(file, None, skip))
    return _not_empty(rows, files[0].setting) if not start else rows


def spans(source: Source, part: Part, stretch: int, *, key: Key) -> list[Span] | None:
    """A part's local files in stretches of about so many bytes, at least one for each file: read one after
    the other they are its rows. None where the source has no such part, or lies on the Hub.
    """
    files = _files(source, part, key) if source.kind is not DataSource.hub else None
    if files is None:
        return None
    found: list[Span] = []
    for file in files:
        split = READERS[file.kind].split
        count = max(1, -(-file.path.stat().st_size // stretch))
        found += split(file, count) if split else [Span(file)]
    return found


def source_files(data: Data) -> dict[str, dict[str, Path]]:
    """The files that rows are read from: by setting, then by name; none where they cannot be told.

    None of the Hub, and none of a stream, which is not read to its end.
    """
    found: dict[str, dict[str, Path]] = {}
    if data.streaming:
        return found
    for name, source in data.mixture().items():
        for part in PARTS:
            with contextlib.suppress(DataError):
                is_here = source.kind is not DataSource.hub
                files = _files(source, part, partial(data.key, name)) if is_here else None
                for file in files or ():
                    found.setdefault(file.setting.key, {})[_name_in(file)] = file.path
    return found


def _name_in(file: DataFile) -> str:
    """A file's name in the folder that the setting names."""
    root = Path(file.setting.value).expanduser()
    return str(file.path.relative_to(root)) if root in file.path.parents else file.path.name


def unread_splits(data: Data) -> list[str]:
    """A line for each folder or pattern with splits that are neither trained on nor held out, and for each
    folder with files that hold no rows.
    """
    found = []
    for name, source in data.mixture().items():
        setting = Setting(data.key(name, "path"), str(source.path))
        if source.kind is DataSource.local:
            with contextlib.suppress(DataError, OSError):
                _, splits = _layout(source, setting, partial(data.key, name))
                unread = [split for split in splits if split not in (UNNAMED, source.train, source.eval)]
                remedy = "" if source.has_eval else f"; hold one out with {data.key(name, 'eval')}"
                if unread:
                    found.append(f"{setting.key}={setting.value}: not read: {listed(unread)}{remedy}")
                folder = Path(setting.value).expanduser()
                if folder.is_dir() and not is_saved(folder) and (others := unread_files(folder, splits)):
                    found.append(f"{setting.key}={setting.value}: not read: {listed(others)}")
    return found


def _files(source: Source, part: Part, key: Key) -> list[DataFile] | None:
    """The files of a part, in their order; None where the source has no such part. Raises DataError."""
    if source.kind is DataSource.embedded:
        path = EMBEDDED_FILES[part]
        return [DataFile(path, path.name, "json", None, Setting("data", "embedded"))]
    if part == "eval" and source.eval_path:
        setting = Setting(key("eval_path"), source.eval_path)
        return _found(source, setting, key, None, ("", "name the file or the folder of one of them."))
    split = source.train if part == "train" else source.eval
    if split is None:
        return None
    remedy = "leave it out." if part == "train" else f"name a file of held-out rows with {key('eval_path')}."
    return _found(source, Setting(key("path"), str(source.path)), key, split, (key(part), remedy))


def _found(
    source: Source, setting: Setting, key: Key, split: str | None, help_with: tuple[str, str]
) -> list[DataFile]:
    """The files of a split of what a setting names. `help_with`: see `choose_split`."""
    try:
        card, splits = _layout(source, setting, key)
        paths = choose_split(setting, splits, split, *help_with)
        one_kind(setting, paths, folder=card is not None and not card.configs)
        features = card.features_of(source.config) if card else {}
        return [_told_apart(file, setting, features) for file in paths]
    except OSError as error:
        reason = error.strerror or error
        raise setting.error(f"cannot be read ({reason}); give a file that can be.") from error


def _layout(source: Source, setting: Setting, key: Key) -> tuple[Card | None, Splits]:
    """(the card of a folder that was not saved, the files by split)."""
    path = Path(setting.value).expanduser()
    card = read_card(path) if path.is_dir() and not is_saved(path) else None
    if card and card.configs:
        return card, card_splits(setting, path, card, source.config, key("config"))
    if source.config:
        problem = f"{setting.key}={setting.value} has no README.md that names configs; leave it out."
        raise Setting(key("config"), source.config).error(problem)
    return card, find_splits(setting)


def _told_apart(path: Path, setting: Setting, features: dict[str, Any]) -> DataFile:
    """A file, and what it holds. Raises DataError where these are no rows."""
    name = setting.value if path == Path(setting.value).expanduser() else str(path)
    file = DataFile(path, name, "", None, setting, features)
    compression = compression_of(path)
    try:
        head = read_head(path, compression)
    except UNPACK_ERRORS as error:
        raise file.error(f"cannot be unpacked ({error}); {DAMAGED}") from error
    kind, problem = kind_of(path, head)
    if kind is None:
        raise file.error(problem)
    if compression and kind in COLUMNAR:
        raise file.error(f"is {kind} inside of {compression}; unpack it.")
    return replace(file, kind=kind, compression=compression)


def _read(file: DataFile, span: Span | None, skip: Skip) -> Iterator[RawRow]:
    """The rows of a file. Raises DataError where it ends, or cannot be read on, before its rows do."""
    try:
        yield from READERS[file.kind].read(file, span, skip)
    except UNPACK_ERRORS as error:
        raise file.error(f"cannot be read to its end ({error}); {DAMAGED}") from error


def _not_empty(rows: Iterator[RawRow], setting: Setting) -> Iterator[RawRow]:
    """The rows. Raises DataError at their end where there was none."""
    row = None
    for row in rows:
        yield row
    if row is None:
        raise setting.error("holds no rows; give data with at least one row.")
