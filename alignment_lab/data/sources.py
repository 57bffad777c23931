"""Where rows come from: the embedded set, a local file or folder, the Hub. Gives plain dictionaries and looks into none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..config import Data, DataSource
from .formats import DataError

Row = dict[str, Any]
EMBEDDED = Path(__file__).parent / "embedded"
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
NO_ROWS = "holds no rows; give data with at least one row."
KINDS = "a .json, .jsonl, .csv or .parquet file, a folder of them, or what datasets' save_to_disk wrote"


def read(data: Data) -> tuple[list[Row], list[Row] | None]:
    """The training rows, and the held-out rows where the setting names some (else None). Raises DataError."""
    if data.source is DataSource.embedded:
        return _lines(EMBEDDED / "train.jsonl"), _lines(EMBEDDED / "test.jsonl")
    train, heldout = OPENERS[data.source](data)
    return train.whole(), heldout.whole() if heldout else None


def streams(data: Data) -> tuple[Stream, Stream | None]:
    """The same, to be read row by row in the order in which they lie. Raises DataError."""
    train, heldout = OPENERS[data.source](data)
    return Stream(train), Stream(heldout) if heldout else None


@dataclass(frozen=True)
class Opened:
    """A dataset that `datasets` has opened, and the setting that named it."""

    key: str
    value: str
    rows: Any  # a Dataset, or an IterableDataset

    def whole(self) -> list[Row]:
        """All of it."""
        found = self.rows.to_list()
        if not found:
            raise DataError(f"{self.key}={self.value}: {NO_ROWS}")
        return found


class Stream:
    """Rows that are read when they are asked for."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.begun = opened, False
        self.rows: Iterator[Row] = iter(opened.rows)

    def take(self, count: int) -> list[Row]:
        """The next rows: fewer only where the data ends. Raises DataError where it holds none at all."""
        found: list[Row] = _reading(
            self.opened.key, self.opened.value, lambda: list(islice(self.rows, count))
        )
        if count and not found and not self.begun:
            raise DataError(f"{self.opened.key}={self.opened.value}: {NO_ROWS}")
        self.begun = True
        return found


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _local(data: Data) -> tuple[Opened, Opened | None]:
    assert data.path is not None
    if data.eval_split and not (Path(data.path).expanduser() / "dataset_dict.json").is_file():
        raise DataError(
            f"data.eval_split={data.eval_split}: data.path={data.path} has no splits; name held-out rows with data.eval_path."
        )
    train = _path("data.path", data.path, data.split, data.streaming)
    if data.eval_path:
        return train, _path("data.eval_path", data.eval_path, data.split, data.streaming)
    return train, _path("data.path", data.path, data.eval_split, data.streaming) if data.eval_split else None


def _path(key: str, name: str, split: str, streaming: bool) -> Opened:
    """The rows of a file, a folder of files, or a dataset saved to disk."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would log what is raised as well
    path = Path(name).expanduser()
    if path.is_dir() and (any(path.glob("dataset_dict.json")) or any(path.glob("state.json"))):
        saved = _split_of(
            _reading(key, name, lambda: datasets.load_from_disk(str(path))), f"{key}={name}", split
        )
        return Opened(key, name, saved.to_iterable_dataset() if streaming else saved)
    files = sorted(file for file in path.iterdir() if file.suffix in READERS) if path.is_dir() else [path]
    suffixes = {file.suffix for file in files}
    if len(suffixes) != 1 or not suffixes <= READERS.keys():
        raise DataError(
            f"{key}={name}: holds {', '.join(sorted(suffixes)) or 'no file to read'}; give {KINDS}, all of one kind."
        )
    if not any(file.stat().st_size for file in files if file.exists()):
        raise DataError(f"{key}={name}: the file is empty; give one with at least one row.")
    reader = READERS[suffixes.pop()]
    names = [str(file) for file in files]
    return Opened(
        key,
        name,
        _reading(
            key,
            name,
            lambda: datasets.load_dataset(reader, data_files=names, split="train", streaming=streaming),
        ),
    )


def _hub(data: Data) -> tuple[Opened, Opened | None]:
    path = str(data.path)
    _reachable(path)

    def split(name: str) -> Opened:
        import datasets

        load = lambda: datasets.load_dataset(path, data.subset, split=name, streaming=data.streaming)  # noqa: E731
        return Opened("data.path", path, _reading("data.path", path, load))

    return split(data.split), split(data.eval_split) if data.eval_split else None


def _reachable(repository: str) -> None:
    """Ask the Hub once whether it has the dataset: without a network, `datasets` would try again for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(repository, timeout=10)
    except OfflineModeIsEnabled:
        return  # HF_HUB_OFFLINE=1: what was fetched before is enough
    except (RepositoryNotFoundError, HFValidationError):
        remedy = "the Hub has no such dataset, or not for you; correct it, or log in with `hf auth login`."
    except Exception:  # a proxy, a name server, a time-out: each client library has errors of its own
        remedy = "the Hub cannot be reached; check the network, set HF_HUB_OFFLINE=1 if it was fetched before, or use data=local data.path=FILE."
    else:
        return
    raise DataError(f"data.path={repository}: {remedy}")


def _split_of(found: Any, said: str, split: str) -> Any:
    """One split of what load_from_disk gave, which has splits or has none."""
    if isinstance(found, dict):
        if split not in found:
            raise DataError(f"{said}: has no split {split!r}; set data.split to one of {', '.join(found)}.")
        found = found[split]
    return found


def _reading(key: str, value: str | None, read: Callable[[], Any]) -> Any:
    """What `read` gives, or the innermost cause of its failure in one sentence."""
    try:
        return read()
    except Exception as error:  # a reader raises whatever its parser and its network do
        if "corresponds to no data" in str(error):
            raise DataError(f"{key}={value}: {NO_ROWS}") from error
        raise DataError(f"{key}={value}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError) and "cached" in text:
        return "is not on this machine, and HF_HUB_OFFLINE=1; fetch it where there is a network, or use data=local data.path=FILE."
    return f"cannot be read ({type(error).__name__}: {text}); give {KINDS}, or the id of a Hub dataset with data=hub."


OPENERS: dict[DataSource, Callable[[Data], tuple[Opened, Opened | None]]] = {
    DataSource.local: _local,
    DataSource.hub: _hub,
}
