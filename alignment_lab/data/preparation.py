"""The rows of one part of a source, prepared: read, converted and told apart from bad ones.

Few rows are kept in memory. Of many, several processes convert stretches at a time into one Arrow file, under
cache_directory()/rows/KEY where the rows are files on this machine: a sweep's cells, and runs that differ in
split, seed or length, share it. The folder may be deleted at any time, which costs the time to prepare anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from ..runtime.caches import temporary_folder
from ..runtime.digests import digest_files
from ..runtime.files import cache_directory, file_digest, json_digest
from .conversion import Conversion, Stretch
from .quarantine import Quarantine, encode_record
from .reasons import DataError, Reason
from .rows import RawRow
from .table import Table, encode_batch, open_table, with_files
from .workers import ordered_map

STRETCH_ROWS = 5_000  # that are converted at a time
FEW_ROWS = 4 * STRETCH_ROWS  # up to as many stay in memory
FEW_BYTES = 16 * 2**20  # files of more are cached
ROWS_FILE, BAD_FILE, FACTS_FILE = "rows.arrow", "bad.jsonl", "facts.json"
CODE = Path(__file__).parent

Work = Sequence[RawRow] | Any  # rows as they were read, or a stretch of a file


@dataclass
class Prepared:
    """A part of a source: its usable rows, and what became of the others."""

    table: Table
    quarantine: Quarantine
    read: int = 0
    filtered: int = 0
    digest: str = ""  # of the rows as they were read, in their order
    unused: set[str] = field(default_factory=set)
    raw_columns: set[str] = field(default_factory=set)  # of a source that renames or filters


@dataclass(frozen=True)
class Part:
    """Where the rows of one part of a source come from."""

    name: str  # of the source
    conversion: Conversion
    read: Callable[[], Iterator[RawRow]]  # all of them
    files: Sequence[Path] = ()  # that they lie in, where these are on this machine
    stretches: Sequence[Any] = ()  # of these files, where they can be read in some
    read_stretch: Callable[[Any], Iterable[RawRow]] = iter


def prepare(part: Part) -> Prepared:
    """All rows of a part. Raises DataError where they cannot be read, or no converter fits them."""
    if sum(file.stat().st_size for file in part.files) > FEW_BYTES:
        return _prepare_cached(part)
    rows = part.read()
    head = list(islice(rows, FEW_ROWS + 1))
    if len(head) <= FEW_ROWS:
        return prepare_rows(part.name, part.conversion, head)
    return _prepare_temporarily(part)


def prepare_rows(name: str, conversion: Conversion, rows: Sequence[RawRow]) -> Prepared:
    """The same of rows that were read already."""
    found = conversion.convert(rows, conversion.columns(rows))
    prepared = Prepared(found.table(), Quarantine(name, found.bad))
    _count(prepared, found)
    prepared.digest = hashlib.sha256(b"".join(found.digests)).hexdigest()
    return prepared


def _count(prepared: Prepared, found: Stretch) -> None:
    prepared.read += found.read
    prepared.filtered += found.filtered
    prepared.unused |= found.unused
    prepared.raw_columns |= found.raw_columns
    for record in found.bad:
        prepared.quarantine.add(record)


def _prepare_cached(part: Part) -> Prepared:
    """Prepared rows of files, found in the cache or kept there; on a full disk, in a temporary folder."""
    folder = cache_directory() / "rows" / _key(part)
    if prepared := _open(folder, part.name):
        return prepared
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _write(part, partial)
        with contextlib.suppress(OSError):  # another process was faster
            partial.rename(folder)
        if prepared := _open(folder, part.name):
            return prepared
    except OSError:
        pass
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _prepare_temporarily(part)


def _prepare_temporarily(part: Part) -> Prepared:
    """Prepared rows in a folder that ends with this process. Raises DataError where they find no room."""
    try:
        folder = temporary_folder("rows")
        _write(part, folder)
    except OSError as error:
        raise DataError(
            f"{part.conversion.label}: its rows cannot be kept in {cache_directory()}, nor in "
            f"{tempfile.gettempdir()} ({error}); make room there, or name other folders with "
            "ALIGNMENT_LAB_CACHE or TMPDIR."
        ) from error
    prepared = _open(folder, part.name)
    assert prepared is not None
    return prepared


def _key(part: Part) -> str:
    """The sha256 of everything that can change a prepared row."""
    code = [*CODE.glob("*.py"), *CODE.glob("formats/*.py"), *CODE.glob("readers/*.py")]
    source = {
        name: value.name if isinstance(value, Enum) else value
        for name, value in asdict(part.conversion.source).items()
        if name in ("kind", "columns", "filter")
    }
    facts = {
        "files": [*map(str, part.files), *digest_files(part.files)],
        "source": source,
        "format": part.conversion.format.name,
        "rejected": part.conversion.rejected,
        "seed": part.conversion.seed if part.conversion.rejected == "random" else None,
        "code": sorted(map(file_digest, code)),
    }
    return json_digest(facts)


def _open(folder: Path, name: str) -> Prepared | None:
    """What `_write` left in a folder, of a source that has this name here; None where it is not there, or
    damaged, which ends it.
    """
    try:
        facts = json.loads((folder / FACTS_FILE).read_text())
        if digest_files([folder / ROWS_FILE, folder / BAD_FILE]) == facts["sha256"]:
            table = open_table(folder / ROWS_FILE, facts["files"])._replace(key=facts["sha256"][0])
            counts = Counter({(Reason[name], detail): count for name, detail, count in facts["counts"]})
            quarantine = Quarantine(name, counts=counts, file=folder / BAD_FILE)
            return Prepared(
                table,
                quarantine,
                facts["read"],
                facts["filtered"],
                facts["digest"],
                set(facts["unused"]),
                set(facts["raw_columns"]),
            )
        shutil.rmtree(folder, ignore_errors=True)
    except (OSError, ValueError, KeyError):
        pass
    return None


def _write(part: Part, folder: Path) -> None:
    """Convert all rows of a part into files in `folder`.

    The columns are taken to be those of the first rows; where later rows have others too, all are converted
    again.
    """
    columns = part.conversion.columns(islice(part.read(), STRETCH_ROWS))
    try:
        found = _write_with(part, folder, columns)
    except DataError:  # no converter fits the first rows: later ones may have what it needs
        found = part.conversion.columns(part.read())
        if found <= columns:
            raise
    while not found <= columns:
        columns |= found
        found = _write_with(part, folder, columns)


def _write_with(part: Part, folder: Path, columns: set[str]) -> set[str]:
    """Convert with the converter for these columns; gives the columns that the rows have."""
    import pyarrow

    prepared = Prepared(Table([], {}, {}, []), Quarantine(part.name))
    digest = hashlib.sha256()
    files: dict[str, int] = {}
    found_columns: set[str] = set()

    def convert(work: Work) -> tuple[Stretch, bytes]:
        rows = work if isinstance(work, list) else part.read_stretch(work)
        stretch = part.conversion.convert(rows, columns)
        batch = encode_batch(stretch.table())
        return stretch.without_rows(), batch.serialize().to_pybytes()

    schema = encode_batch(Stretch().table()).schema
    with (
        pyarrow.OSFile(str(folder / ROWS_FILE), "wb") as sink,
        pyarrow.ipc.new_file(sink, schema) as writer,
        (folder / BAD_FILE).open("w", encoding="utf-8") as bad,
    ):
        for stretch, content in ordered_map(convert, part.stretches or _batches(part.read())):
            _count(prepared, stretch)
            digest.update(b"".join(stretch.digests))
            bad.writelines(map(encode_record, stretch.bad))
            found_columns |= stretch.columns
            places = [files.setdefault(file, len(files)) for file in stretch.files]
            writer.write(with_files(pyarrow.ipc.read_record_batch(content, schema), places))
    facts = {
        "read": prepared.read,
        "filtered": prepared.filtered,
        "digest": digest.hexdigest(),
        "unused": sorted(prepared.unused),
        "raw_columns": sorted(prepared.raw_columns),
        "files": list(files),
        "counts": [
            [reason.name, detail, count] for (reason, detail), count in prepared.quarantine.counts.items()
        ],
        "sha256": digest_files([folder / ROWS_FILE, folder / BAD_FILE]),
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts))
    return found_columns


def _batches(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    while batch := list(islice(rows, STRETCH_ROWS)):
        yield batch
