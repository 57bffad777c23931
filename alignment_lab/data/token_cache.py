"""Token ids, cached under the content they were made from: rows are tokenized once on a machine.

A file lies in cache_directory()/tokens/KEY, named by its own sha256. Only damaged files are ever removed; the
folder may be deleted at any time, which costs the time to tokenize again. Knows how tokens are stored, not
how they are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.files import cache_directory, file_digest, write_atomic
from .reasons import BadRow, Reason
from .rows import Row
from .tokenization import TOKEN_COLUMNS, Tokenized

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerBase

    Arrays = dict[str, numpy.ndarray]

# (tokenizer, rows, max_length) -> what became of them
Tokenize = Callable[["PreTrainedTokenizerBase", Sequence[Row], int], Tokenized]
SOURCE_FILES = tuple(  # part of the key: another version of these may make other tokens
    Path(__file__).with_name(f"{module}.py") for module in ("tokenization", "templates", "blocks")
)


def tokenize_cached(
    tokenize: Tokenize, tokenizer: PreTrainedTokenizerBase, digest: str, rows: Sequence[Row], max_length: int
) -> Tokenized:
    """What `tokenize(tokenizer, rows, max_length)` returns, computed once.

    `digest` identifies the tokenizer's vocabulary, rules and template.
    """
    folder = cache_directory() / "tokens" / _cache_key(tokenize, tokenizer, digest, rows, max_length)
    arrays = _read_arrays(folder)
    if arrays is None:
        arrays = _tokenize_to_arrays(tokenize, tokenizer, rows, max_length)
        with contextlib.suppress(OSError):  # a full disk or a folder that may not be written: do without
            _write_arrays(folder, arrays)
    return _join_rows(rows, arrays)


def _cache_key(
    tokenize: Tokenize, tokenizer: PreTrainedTokenizerBase, digest: str, rows: Sequence[Row], max_length: int
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
        "max_length": max_length,
        # Llama 3.2's template writes the date.
        "today": str(date.today()) if "strftime_now" in template else None,
    }
    sha256 = hashlib.sha256(json.dumps(facts).encode())
    for row in rows:
        sha256.update(json.dumps(row, default=str).encode() + b"\n")
    return sha256.hexdigest()


def _tokenize_to_arrays(
    tokenize: Tokenize, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int
) -> Arrays:
    """int32 arrays: each column's concatenated ids and their lengths, the rows' indices, and other facts."""
    import numpy

    tokenized = tokenize(tokenizer, rows, max_length)
    first = tokenized.rows[0] if tokenized.rows else {}
    columns = [column for column in TOKEN_COLUMNS if column in first]
    source_row = rows[tokenized.indices[0]] if tokenized.indices else {}
    assert first.keys() <= {*columns, *source_row}, "a column of tokens that TOKEN_COLUMNS lacks"
    dropped = [[index, bad.reason.name, bad.detail] for index, bad in tokenized.dropped]
    facts = json.dumps({"counts": tokenized.counts, "dropped": dropped}).encode()
    arrays: Arrays = {"facts": numpy.frombuffer(facts, numpy.uint8)}
    arrays["indices"] = numpy.fromiter(tokenized.indices, numpy.int32, len(tokenized.indices))
    for column in columns:
        lengths = (len(row[column]) for row in tokenized.rows)
        arrays[f"{column}.lengths"] = numpy.fromiter(lengths, numpy.int32, len(tokenized.rows))
        ids = chain.from_iterable(row[column] for row in tokenized.rows)
        arrays[column] = numpy.fromiter(ids, numpy.int32, int(arrays[f"{column}.lengths"].sum()))
    return arrays


def _join_rows(rows: Sequence[Row], arrays: Arrays) -> Tokenized:
    """The rows with their ids; a block of several rows carries ids alone."""
    columns = {
        column: _split_by_length(arrays[column], arrays[f"{column}.lengths"])
        for column in TOKEN_COLUMNS
        if column in arrays
    }
    tokens: list[Row] = [dict(zip(columns, ids, strict=True)) for ids in zip(*columns.values(), strict=True)]
    indices = arrays["indices"].tolist()
    if indices:
        tokens = [{**rows[index], **ids} for index, ids in zip(indices, tokens, strict=True)]
    facts = json.loads(arrays["facts"].tobytes())
    dropped = [(index, BadRow(Reason[name], detail)) for index, name, detail in facts["dropped"]]
    return Tokenized(tokens, indices, dropped, Counter(facts["counts"]))


def _split_by_length(flat: numpy.ndarray, lengths: numpy.ndarray) -> list[list[int]]:
    ends = lengths.cumsum(dtype="int64").tolist()
    return [flat[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]


def _read_arrays(folder: Path) -> Arrays | None:
    """The arrays in `folder`; a file whose content does not match its name is removed."""
    from safetensors.numpy import load

    with contextlib.suppress(OSError):
        for file in sorted(folder.glob("*.safetensors")):
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() == file.stem:
                return load(content)
            if re.fullmatch(r"[0-9a-f]{64}", file.stem):  # else it is no file of the cache
                file.unlink(missing_ok=True)
    return None


def _write_arrays(folder: Path, arrays: Arrays) -> None:
    """Write atomically: processes that tokenize the same rows at once write the same file, one by one."""
    from safetensors.numpy import save

    content = save(arrays)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
