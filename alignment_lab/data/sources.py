"""Raw rows from the embedded data set, local files or the Hub. Knows no column of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ..config import Data, DataSource
from .reasons import DataError
from .rows import Row

T = TypeVar("T")
EMBEDDED = Path(__file__).parent / "embedded"
READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}  # names of datasets' builders
NO_ROWS = "holds no rows; give data with at least one row."
READABLE = "a .json, .jsonl, .csv or .parquet file, a folder of them, or what datasets' save_to_disk wrote"


def read_rows(data: Data) -> tuple[list[Row], list[Row] | None]:
    """(training rows, held-out rows or None where `data` names none). Raises DataError."""
    if data.source is DataSource.embedded:
        return _read_jsonl(EMBEDDED / "train.jsonl"), _read_jsonl(EMBEDDED / "test.jsonl")
    train, heldout = OPENERS[data.source](data)
    return train.read_all(), heldout.read_all() if heldout else None


def open_streams(data: Data) -> tuple[RowStream, RowStream | None]:
    """The same as `read_rows`, to be read row by row in the order of the file. Raises DataError."""
    train, heldout = OPENERS[data.source](data)
    return RowStream(train), RowStream(heldout) if heldout else None


def source_files(data: Data) -> dict[str, dict[str, Path]]:
    """The files that rows are read from: by setting, then by name.

    None of the Hub, and none of a stream, which is not read to its end.
    """
    if data.source is DataSource.embedded:
        return {"data": {name: EMBEDDED / name for name in ("train.jsonl", "test.jsonl")}}
    if data.source is not DataSource.local or data.streaming:
        return {}
    settings = {"data.path": data.path, "data.eval_path": data.eval_path}
    return {key: _files_in(Path(value).expanduser()) for key, value in settings.items() if value}


def _files_in(path: Path) -> dict[str, Path]:
    """A file, the files of a folder, or those of a dataset that was saved to disk, without its caches."""
    if not path.is_dir():
        return {path.name: path} if path.is_file() else {}
    if _is_saved(path):
        files = [file for pattern in ("*.arrow", "*.json") for file in path.rglob(pattern)]
        return {
            str(file.relative_to(path)): file
            for file in sorted(files)
            if not file.name.startswith(("cache-", "tmp"))
        }
    return {file.name: file for file in sorted(path.iterdir()) if file.suffix in READERS and file.is_file()}


def _is_saved(path: Path) -> bool:
    """Whether `datasets` wrote this folder with save_to_disk."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


@dataclass(frozen=True)
class OpenedDataset:
    """A dataset that `datasets` has opened, with the config key and the value that named it."""

    key: str
    value: str
    dataset: Any  # a Dataset, or an IterableDataset

    def read_all(self) -> list[Row]:
        """All rows. Raises DataError where there are none."""
        rows: list[Row] = self.dataset.to_list()
        if not rows:
            raise DataError(f"{self.key}={self.value}: {NO_ROWS}")
        return rows


class RowStream:
    """Rows that are read when they are taken."""

    def __init__(self, opened: OpenedDataset) -> None:
        self.opened, self.started = opened, False
        self.rows: Iterator[Row] = iter(opened.dataset)

    def take(self, count: int) -> list[Row]:
        """The next `count` rows, fewer only at the end of the data. Raises DataError where it has none."""
        key, value = self.opened.key, self.opened.value
        rows = _read_or_raise(key, value, lambda: list(islice(self.rows, count)))
        if count and not rows and not self.started:
            raise DataError(f"{key}={value}: {NO_ROWS}")
        self.started = True
        return rows


def _read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _open_local(data: Data) -> tuple[OpenedDataset, OpenedDataset | None]:
    assert data.path is not None
    if data.eval_split and not (Path(data.path).expanduser() / "dataset_dict.json").is_file():
        raise DataError(
            f"data.eval_split={data.eval_split}: data.path={data.path} has no splits; "
            "name a file of held-out rows with data.eval_path."
        )
    train = _open_path("data.path", data.path, data.split, data.streaming)
    if data.eval_path:
        return train, _open_path("data.eval_path", data.eval_path, data.split, data.streaming)
    if data.eval_split:
        return train, _open_path("data.path", data.path, data.eval_split, data.streaming)
    return train, None


def _open_path(key: str, value: str, split: str, streaming: bool) -> OpenedDataset:
    """Open a file, a folder of files, or a dataset saved to disk."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs errors that it also raises
    path = Path(value).expanduser()
    if path.is_dir() and _is_saved(path):
        saved = _read_or_raise(key, value, lambda: datasets.load_from_disk(str(path)))
        dataset = _select_split(saved, f"{key}={value}", split)
        return OpenedDataset(key, value, dataset.to_iterable_dataset() if streaming else dataset)
    reader, files = _data_files(key, value, path)
    load = partial(datasets.load_dataset, reader, data_files=files, split="train", streaming=streaming)
    return OpenedDataset(key, value, _read_or_raise(key, value, load))


def _data_files(key: str, value: str, path: Path) -> tuple[str, list[str]]:
    """(name of datasets' builder, files). Raises DataError unless all files are of one kind."""
    files = sorted(file for file in path.iterdir() if file.suffix in READERS) if path.is_dir() else [path]
    suffixes = {file.suffix for file in files}
    if len(suffixes) != 1 or not suffixes <= READERS.keys():
        contents = ", ".join(sorted(suffixes)) or "no file to read"
        raise DataError(f"{key}={value}: holds {contents}; give {READABLE}, all of one kind.")
    if not any(file.stat().st_size for file in files if file.exists()):
        raise DataError(f"{key}={value}: the file is empty; give one with at least one row.")
    return READERS[suffixes.pop()], [str(file) for file in files]


def _open_hub(data: Data) -> tuple[OpenedDataset, OpenedDataset | None]:
    repository = str(data.path)
    _check_reachable(repository)

    def open_split(split: str) -> OpenedDataset:
        import datasets

        load = partial(datasets.load_dataset, repository, data.config, split=split, streaming=data.streaming)
        return OpenedDataset("data.path", repository, _read_or_raise("data.path", repository, load))

    return open_split(data.split), open_split(data.eval_split) if data.eval_split else None


def _check_reachable(repository: str) -> None:
    """Ask the Hub once for the dataset: without a network, `datasets` would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(repository, timeout=10)
    except OfflineModeIsEnabled:
        return  # HF_HUB_OFFLINE=1: the local cache may have it
    except (RepositoryNotFoundError, HFValidationError):
        problem = "the Hub has no such dataset, or not for you; correct it, or log in with `hf auth login`."
    except Exception:  # a proxy, a name server, a timeout: each client library has errors of its own
        problem = (
            "the Hub cannot be reached; check the network, set HF_HUB_OFFLINE=1 if it was fetched before, "
            "or use data=local data.path=FILE."
        )
    else:
        return
    raise DataError(f"data.path={repository}: {problem}")


def _select_split(saved: Any, setting: str, split: str) -> Any:
    """One split of a DatasetDict; a Dataset, which has no splits, as it is."""
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise DataError(f"{setting}: has no split {split!r}; set data.split to one of {', '.join(saved)}.")
    return saved[split]


def _read_or_raise(key: str, value: str, read: Callable[[], T]) -> T:
    """What `read` returns, or a DataError with the innermost cause of its failure in one sentence."""
    try:
        return read()
    except Exception as error:  # a reader raises whatever its parser and its network raise
        if "corresponds to no data" in str(error):
            raise DataError(f"{key}={value}: {NO_ROWS}") from error
        raise DataError(f"{key}={value}: {_describe_cause(error)}") from error


def _describe_cause(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError) and "cached" in text:
        return (
            "is not on this machine, and HF_HUB_OFFLINE=1; fetch it where there is a network, "
            "or use data=local data.path=FILE."
        )
    if cache := _cache_of(error):
        return (
            f"its cache {cache} cannot be written ({text}); "
            "let HF_HOME or HF_DATASETS_CACHE name a folder that can be."
        )
    reason = f"{type(error).__name__}: {text}"
    return f"cannot be read ({reason}); give {READABLE}, or the id of a Hub dataset with data=hub."


def _cache_of(error: BaseException) -> str | None:
    """The folder of the cache in which a file could not be made; None where it is about another file."""
    import datasets

    file, folders = getattr(error, "filename", None), datasets.config
    caches = (folders.HF_DATASETS_CACHE, folders.HF_MODULES_CACHE)
    return next((str(cache) for cache in caches if file and Path(str(file)).is_relative_to(cache)), None)


OPENERS: dict[DataSource, Callable[[Data], tuple[OpenedDataset, OpenedDataset | None]]] = {
    DataSource.local: _open_local,
    DataSource.hub: _open_hub,
}
