"""Token ids, kept under the content of what they were made from: the same rows are tokenized once on a machine.

A file lies in cache_directory()/tokens/KEY and bears its own sha256 as its name. Nothing here is ever removed but a damaged file; the
folder may be deleted at any time, and costs only the time to tokenize again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from ..runtime.files import cache_directory, file_digest, write_atomic
from .tokenization import TOKEN_COLUMNS

Row = dict[str, Any]
Tokenize = Callable[[Any, list[Row], int], tuple[list[Row], Counter[str]]]  # tokenizer, rows, max_length
CODE = tuple(
    Path(__file__).with_name(f"{name}.py") for name in ("tokenization", "templates", "blocks")
)  # another version makes other tokens
PLACE = "_place"  # where a tokenized row stood among the rows


def tokenize_cached(
    tokenize: Tokenize, tokenizer: Any, digest: str, rows: list[Row], max_length: int
) -> tuple[list[Row], Counter[str]]:
    """What `tokenize(tokenizer, rows, max_length)` gives, made once. `digest`: of the tokenizer's vocabulary, rules and template."""
    folder = cache_directory() / "tokens" / _key(tokenize, tokenizer, digest, rows, max_length)
    kept = _read(folder)
    if kept is None:
        kept = _made(tokenize, tokenizer, rows, max_length)
        with contextlib.suppress(OSError):  # no room, no right to write: the run goes on without
            _write(folder, kept)
    return _joined(rows, kept)


def _key(tokenize: Tokenize, tokenizer: Any, digest: str, rows: list[Row], max_length: int) -> str:
    """The sha256 of all that can change a token."""
    template = str(tokenizer.chat_template)
    facts = {
        "tokenizer": [
            digest,
            template,
            sorted(tokenizer.special_tokens_map.items()),
            getattr(tokenizer, "split_special_tokens", False),
        ],
        "made by": [
            tokenize.__qualname__,
            *map(file_digest, CODE),
            *map(version, ("tokenizers", "transformers")),
        ],
        "max_length": max_length,
        "today": str(date.today())
        if "strftime_now" in template
        else None,  # Llama 3.2's template writes the date
    }
    found = hashlib.sha256(json.dumps(facts).encode())
    for row in rows:
        found.update(json.dumps(row, default=str).encode() + b"\n")
    return found.hexdigest()


def _made(tokenize: Tokenize, tokenizer: Any, rows: list[Row], max_length: int) -> dict[str, Any]:
    """Arrays of int32: every column's ids on end and the length of each, the places of the rows they belong to, and the counts."""
    import numpy

    made, counts = tokenize(tokenizer, [{**row, PLACE: place} for place, row in enumerate(rows)], max_length)
    arrays: dict[str, Any] = {"counts": numpy.frombuffer(json.dumps(counts).encode(), numpy.uint8)}
    names = [name for name in TOKEN_COLUMNS if made and name in made[0]]
    assert not made or made[0].keys() <= {*names, PLACE, *rows[made[0].get(PLACE, 0)]}, (
        "a column of tokens that COLUMNS does not name"
    )
    for name in names:
        lengths = numpy.fromiter((len(row[name]) for row in made), numpy.int32, len(made))
        arrays[f"{name}.lengths"] = lengths
        arrays[name] = numpy.fromiter(
            chain.from_iterable(row[name] for row in made), numpy.int32, int(lengths.sum())
        )
    if made and PLACE in made[0]:
        arrays[PLACE] = numpy.fromiter((row[PLACE] for row in made), numpy.int32, len(made))
    return arrays


def _joined(rows: list[Row], arrays: dict[str, Any]) -> tuple[list[Row], Counter[str]]:
    """The rows with their ids; blocks of several rows stand alone."""
    columns = {
        name: _parted(arrays[name], arrays[f"{name}.lengths"]) for name in TOKEN_COLUMNS if name in arrays
    }
    kept = [rows[place] for place in arrays[PLACE].tolist()] if PLACE in arrays else None
    joined = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if kept is not None:
        joined = [{**row, **ids} for row, ids in zip(kept, joined, strict=True)]
    return joined, Counter(json.loads(arrays["counts"].tobytes()))


def _parted(flat: Any, lengths: Any) -> list[list[int]]:
    ends = lengths.cumsum(dtype="int64").tolist()
    return [flat[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]


def _read(folder: Path) -> dict[str, Any] | None:
    """The arrays in `folder`; a file that is not what its name says is removed."""
    from safetensors.numpy import load

    with contextlib.suppress(OSError):
        for file in sorted(folder.glob("*.safetensors")):
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() == file.stem:
                return load(content)
            file.unlink(missing_ok=True)
    return None


def _write(folder: Path, arrays: dict[str, Any]) -> None:
    """Whole or not at all. Processes that make the same tokens at once write the same file, each in its turn."""
    from safetensors.numpy import save

    content = save(arrays)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
