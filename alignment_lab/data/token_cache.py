"""Token ids, cached under the content they were made from: rows are tokenized once on a machine.

A file lies in cache_directory()/tokens/KEY, named by its own sha256. Only damaged files are ever removed; the
folder may be deleted at any time, which costs the time to tokenize again. Knows how tokens are stored, not
how they are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Truncation
from ..runtime.digests import digest_files
from ..runtime.files import cache_directory, file_digest
from .reasons import BadRow, Reason
from .rows import Row
from .table import Ragged, Rows
from .token_rows import CHUNK, COUNTED, TOKEN_COLUMNS, Tokenized, TokenRows
from .workers import ordered_map

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerBase

    Arrays = dict[str, numpy.ndarray]

# (tokenizer, rows, max_length, truncation) -> what became of them
Tokenize = Callable[["PreTrainedTokenizerBase", Sequence[Row], int, Truncation], Tokenized]
CHUNK_ROWS = 4_000  # that are tokenized at a time
MANY_ROWS = 5 * CHUNK_ROWS  # more than these are tokenized by several processes
SPILL_BYTES = 2**26  # of an array that is not kept in memory
SOURCE_FILES = tuple(  # part of the key: another version of these may make other tokens
    Path(__file__).with_name(f"{module}.py")
    for module in ("tokenization", "turns", "prompts", "templates", "encoding", "blocks")
)


def tokenize_cached(
    tokenize: Tokenize,
    tokenizer: PreTrainedTokenizerBase,
    digest: str,
    rows: Sequence[Row],
    max_length: int,
    truncation: Truncation = Truncation.answer,
) -> Tokenized:
    """What `tokenize(tokenizer, rows, max_length, truncation)` returns, computed once.

    `digest` identifies the tokenizer's vocabulary, rules and template.
    """
    folder = (
        cache_directory()
        / "tokens"
        / _cache_key(tokenize, tokenizer, digest, rows, [max_length, truncation.name])
    )
    arrays = _read_arrays(folder)
    if arrays is None:
        arrays = _tokenize_to_arrays(lambda chunk: tokenize(tokenizer, chunk, max_length, truncation), rows)
        with contextlib.suppress(OSError):  # a full disk or a folder that may not be written: do without
            _write_arrays(folder, arrays)
    return _join_rows(rows, arrays)


def _cache_key(
    tokenize: Tokenize, tokenizer: PreTrainedTokenizerBase, digest: str, rows: Sequence[Row], limit: list[Any]
) -> str:
    """The sha256 of everything that can change a token."""
    template = str(tokenizer.chat_template)
    special_tokens = sorted(tokenizer.special_tokens_map.items())
    split_special_tokens = getattr(tokenizer, "split_special_tokens", False)
    facts = {
        "tokenizer": [digest, template, special_tokens, split_special_tokens],
        "code": [
            tokenize.__qualname__,
            *map(file_digest, SOURCE_FILES),
            *map(version, ("tokenizers", "transformers")),
        ],
        "limit": limit,
        # Llama 3.2's template writes the date.
        "today": str(date.today()) if "strftime_now" in template else None,
    }
    sha256 = hashlib.sha256(json.dumps(facts).encode())
    if isinstance(rows, Rows) and rows.table.key:
        sha256.update(rows.table.key.encode() + rows.indices.astype("<i8").tobytes())
    else:
        for row in rows:
            sha256.update(json.dumps(row, default=str).encode() + b"\n")
    return sha256.hexdigest()


def _tokenize_to_arrays(tokenize: Callable[[Sequence[Row]], Tokenized], rows: Sequence[Row]) -> Arrays:
    """int32 arrays: each column's concatenated ids and their lengths, the rows' indices, and other facts.

    Of many rows several processes tokenize a chunk at a time; texts share blocks within a chunk.
    """
    import numpy

    def tokenize_chunk(start: int) -> tuple[Arrays, list[list[Any]], Counter[str]]:
        chunk = rows[start : start + CHUNK_ROWS]
        return _to_arrays(tokenize(chunk), chunk, start)

    starts = range(0, len(rows), CHUNK_ROWS) if len(rows) else [0]
    growing: dict[str, GrowingArray] = {}
    dropped: list[list[Any]] = []
    counts: Counter[str] = Counter()
    processes = None if len(rows) > MANY_ROWS else 1
    for part, dropped_here, counted in ordered_map(tokenize_chunk, starts, processes):
        for name, values in part.items():
            growing.setdefault(name, GrowingArray()).append(values)
        dropped += dropped_here
        counts.update(counted)
    arrays = {name: array.values() for name, array in growing.items()}
    facts = json.dumps({"counts": counts, "dropped": dropped}).encode()
    return {"facts": numpy.frombuffer(facts.ljust(-(-len(facts) // 4) * 4), numpy.int32), **arrays}


def _to_arrays(
    tokenized: Tokenized, rows: Sequence[Row], offset: int
) -> tuple[Arrays, list[list[Any]], Counter[str]]:
    import numpy

    first = tokenized.rows[0] if tokenized.rows else {}
    columns = [column for column in TOKEN_COLUMNS if column in first]
    source_row = rows[tokenized.indices[0]] if tokenized.indices else {}
    assert first.keys() <= {*columns, *source_row}, "a column of tokens that TOKEN_COLUMNS lacks"
    dropped = [[offset + index, bad.reason.name, bad.detail] for index, bad in tokenized.dropped]
    arrays: Arrays = {
        "indices": numpy.array(tokenized.indices, numpy.int32) + numpy.int32(offset),
        "counted": numpy.array(tokenized.counted, numpy.int32).reshape(-1),
    }
    for column in columns:
        lengths = numpy.fromiter((len(row[column]) for row in tokenized.rows), numpy.int32)
        ids = chain.from_iterable(row[column] for row in tokenized.rows)
        arrays[f"{column}.lengths"] = lengths
        arrays[column] = numpy.fromiter(ids, numpy.int32, int(lengths.sum()))
    return arrays, dropped, tokenized.counts


def _join_rows(rows: Sequence[Row], arrays: Arrays) -> Tokenized:
    """The rows with their ids; a block of several rows carries ids alone."""
    columns = {
        column: Ragged(arrays[column], arrays[f"{column}.lengths"].cumsum(dtype="int64"))
        for column in TOKEN_COLUMNS
        if column in arrays
    }
    indices = arrays["indices"]
    facts = json.loads(arrays["facts"].tobytes())
    dropped = [(index, BadRow(Reason[name], detail)) for index, name, detail in facts["dropped"]]
    token_rows = TokenRows(columns, rows, indices if len(indices) else None)
    counted = arrays["counted"].reshape(-1, len(COUNTED))
    return Tokenized(token_rows, indices.tolist(), counted, dropped, Counter(facts["counts"]))


class GrowingArray:
    """An int32 array that grows: small in memory, else in a file without a name."""

    def __init__(self) -> None:
        self.file: Any = io.BytesIO()

    def append(self, values: numpy.ndarray) -> None:
        """Add values at the end."""
        self.file.write(values.tobytes())
        if isinstance(self.file, io.BytesIO) and self.file.tell() > SPILL_BYTES:
            with contextlib.suppress(OSError):  # no space for it: stay in memory
                spilled = tempfile.TemporaryFile()  # noqa: SIM115  # it is kept
                spilled.write(self.file.getbuffer())
                self.file = spilled

    def values(self) -> numpy.ndarray:
        """All values."""
        import numpy

        if isinstance(self.file, io.BytesIO):
            content = self.file.getvalue()
            return numpy.frombuffer(content, numpy.int32) if content else numpy.zeros(0, numpy.int32)
        self.file.flush()
        return numpy.memmap(self.file, numpy.int32, mode="r")


def _read_arrays(folder: Path) -> Arrays | None:
    """The arrays in `folder`, mapped; a file whose content does not match its name is removed."""
    with contextlib.suppress(OSError):
        for file in sorted(folder.glob("*.safetensors")):
            (digest,) = digest_files([file])
            if digest == file.stem:
                return _map_arrays(file)
            if re.fullmatch(r"[0-9a-f]{64}", file.stem):  # else it is no file of the cache
                file.unlink(missing_ok=True)
    return None


def _map_arrays(file: Path) -> Arrays:
    """The int32 arrays of a safetensors file; a large one is mapped."""
    import numpy

    is_large = file.stat().st_size > SPILL_BYTES
    content = numpy.memmap(file, numpy.uint8, mode="r") if is_large else numpy.fromfile(file, numpy.uint8)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    places = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: content[start + a : start + b].view(numpy.int32) for name, (a, b) in places.items()}


def _write_arrays(folder: Path, arrays: Arrays) -> None:
    """Write atomically: processes that tokenize the same rows at once write the same file, one by one."""
    header, end = {}, 0
    for name, values in arrays.items():
        header[name] = {"dtype": "I32", "shape": [len(values)], "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)  # so that the arrays are aligned
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}.partial"
    sha256 = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            part: Any
            for part in (
                len(encoded).to_bytes(8, "little"),
                encoded,
                *(values.data for values in arrays.values()),
            ):
                for start in range(0, len(part), CHUNK):
                    sha256.update(part[start : start + CHUNK])
                    file.write(part[start : start + CHUNK])
        partial.replace(folder / f"{sha256.hexdigest()}.safetensors")
    finally:
        partial.unlink(missing_ok=True)
