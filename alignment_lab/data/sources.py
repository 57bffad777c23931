"""Where rows come from: the embedded set, a local file or folder, the Hub. Gives plain dictionaries and looks into none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..spec import Data, DataSource
from .formats import DataError

Row = dict[str, Any]
EMBEDDED = Path(__file__).parent / "embedded"
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
KINDS = "a .json, .jsonl, .csv or .parquet file, a folder of them, or what datasets' save_to_disk wrote"


def read(data: Data) -> tuple[list[Row], list[Row] | None]:
    """The training rows, and the held-out rows where the setting names some (else None). Raises DataError."""
    return SOURCES[data.source](data)


def _embedded(data: Data) -> tuple[list[Row], list[Row] | None]:
    train, test = (_lines(EMBEDDED / name) for name in ("train.jsonl", "test.jsonl"))
    return train, test


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _local(data: Data) -> tuple[list[Row], list[Row] | None]:
    assert data.path is not None
    if data.eval_split and not (Path(data.path).expanduser() / "dataset_dict.json").is_file():
        raise DataError(f"data.eval_split={data.eval_split}: data.path={data.path} has no splits; name held-out rows with data.eval_path.")
    train = _path("data.path", data.path, data.split)
    if data.eval_path:
        return train, _path("data.eval_path", data.eval_path, data.split)
    return train, _path("data.path", data.path, data.eval_split) if data.eval_split else None


def _path(key: str, name: str, split: str) -> list[Row]:
    """The rows of a file, a folder of files, or a dataset saved to disk."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would log what is raised as well
    path = Path(name).expanduser()
    if path.is_dir() and (any(path.glob("dataset_dict.json")) or any(path.glob("state.json"))):
        return _split_of(_reading(key, name, lambda: datasets.load_from_disk(str(path))), f"{key}={name}", split)
    files = sorted(file for file in path.iterdir() if file.suffix in READERS) if path.is_dir() else [path]
    suffixes = {file.suffix for file in files}
    if len(suffixes) != 1 or not suffixes <= READERS.keys():
        raise DataError(f"{key}={name}: holds {', '.join(sorted(suffixes)) or 'no file to read'}; give {KINDS}, all of one kind.")
    if not any(file.stat().st_size for file in files if file.exists()):
        raise DataError(f"{key}={name}: the file is empty; give one with at least one row.")
    reader = READERS[suffixes.pop()]
    names = [str(file) for file in files]
    return _listed(_reading(key, name, lambda: datasets.load_dataset(reader, data_files=names, split="train")), f"{key}={name}")


def _hub(data: Data) -> tuple[list[Row], list[Row] | None]:
    _reachable(str(data.path))

    def split(name: str) -> list[Row]:
        import datasets

        found = _reading("data.path", data.path, lambda: datasets.load_dataset(data.path, data.subset, split=name))
        return _listed(found, f"data.path={data.path}")

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
        remedy = (
            "the Hub cannot be reached; check the network, set HF_HUB_OFFLINE=1 if it was fetched before, or use data=local data.path=FILE."
        )
    else:
        return
    raise DataError(f"data.path={repository}: {remedy}")


def _split_of(found: Any, said: str, split: str) -> list[Row]:
    """One split of what load_from_disk gave, which has splits or has none."""
    if isinstance(found, dict):
        if split not in found:
            raise DataError(f"{said}: has no split {split!r}; set data.split to one of {', '.join(found)}.")
        found = found[split]
    return _listed(found, said)


def _listed(dataset: Any, said: str) -> list[Row]:
    if len(dataset) == 0:
        raise DataError(f"{said}: holds no rows; give data with at least one row.")
    return dataset.to_list()


def _reading(key: str, value: str | None, read: Callable[[], Any]) -> Any:
    """What `read` gives, or the innermost cause of its failure in one sentence."""
    try:
        return read()
    except Exception as error:  # a reader raises whatever its parser and its network do
        if "corresponds to no data" in str(error):
            raise DataError(f"{key}={value}: holds no rows; give data with at least one row.") from error
        raise DataError(f"{key}={value}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError) and "cached" in text:
        return "is not on this machine, and HF_HUB_OFFLINE=1; fetch it where there is a network, or use data=local data.path=FILE."
    return f"cannot be read ({type(error).__name__}: {text}); give {KINDS}, or the id of a Hub dataset with data=hub."


SOURCES: dict[DataSource, Callable[[Data], tuple[list[Row], list[Row] | None]]] = {
    DataSource.embedded: _embedded,
    DataSource.local: _local,
    DataSource.hub: _hub,
}
