"""Rows of the Hub, which `datasets` finds and fetches; nothing is decoded that is not text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ...config import Source
from ..rows import RawRow
from .columnar import BATCH, plain_rows
from .places import Key, Setting

T = TypeVar("T")
LOCAL_INSTEAD = "or use data=local data.path=FILE."


def open_hub(source: Source, split: str, key: Key, *, streaming: bool, start: int = 0) -> Iterator[RawRow]:
    """The rows of a split from row `start` on, in their order. Raises DataError."""
    import datasets

    setting = Setting(key("path"), str(source.path))
    _check_reachable(setting, source.revision)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs errors that it also raises

    def load() -> Any:
        return datasets.load_dataset(
            source.path, source.config, split=split, revision=source.revision, streaming=streaming
        )

    dataset = _read_or_raise(setting, load)
    return _read(setting, f"{source.path} ({split})", dataset, start)


def _read(setting: Setting, name: str, dataset: Any, start: int) -> Iterator[RawRow]:
    features = dataset.features.to_dict() if dataset.features else {}
    batches = iter((dataset.skip(start) if start else dataset).with_format("arrow").iter(batch_size=BATCH))
    number = start
    while (batch := _read_or_raise(setting, lambda: next(batches, None))) is not None:
        for row in plain_rows(batch, features):
            number += 1
            yield RawRow(row, name, number, unit="row")


def _check_reachable(setting: Setting, revision: str | None) -> None:
    """Ask the Hub once for the dataset: without a network, `datasets` would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().dataset_info(setting.value, revision=revision, timeout=10)
    except OfflineModeIsEnabled:
        return  # HF_HUB_OFFLINE=1: the local cache may have it
    except RevisionNotFoundError:
        problem = f"has no revision {revision!r}; give a branch, a tag or a commit of it."
    except (RepositoryNotFoundError, HFValidationError):
        problem = "the Hub has no such dataset, or not for you; correct it, or log in with `hf auth login`."
    except Exception:  # a proxy, a name server, a timeout: each client library has errors of its own
        problem = (
            "the Hub cannot be reached; check the network, set HF_HUB_OFFLINE=1 if it was fetched before, "
            + LOCAL_INSTEAD
        )
    else:
        return
    raise setting.error(problem)


def _read_or_raise(setting: Setting, read: Callable[[], T]) -> T:
    """What `read` returns, or a DataError with the innermost cause of its failure in one sentence."""
    try:
        return read()
    except Exception as error:  # a reader raises whatever its parser and its network raise
        raise setting.error(_describe_cause(error)) from error


def _describe_cause(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError) and "cached" in text:
        problem = "is not on this machine, and HF_HUB_OFFLINE=1; fetch it where there is a network"
        return f"{problem}, {LOCAL_INSTEAD}"
    if cache := _cache_of(error):
        return (
            f"its cache {cache} cannot be written ({text}); "
            "let HF_HOME or HF_DATASETS_CACHE name a folder that can be."
        )
    return (
        f"cannot be read ({type(error).__name__}: {text}); correct its config, split or revision, or "
        "fetch it with `hf download --repo-type dataset` and read that folder with data=local."
    )


def _cache_of(error: BaseException) -> str | None:
    """The folder of the cache in which a file could not be made; None where it is about another file."""
    from pathlib import Path

    import datasets

    file, folders = getattr(error, "filename", None), datasets.config
    caches = (folders.HF_DATASETS_CACHE, folders.HF_MODULES_CACHE)
    return next((str(cache) for cache in caches if file and Path(str(file)).is_relative_to(cache)), None)
