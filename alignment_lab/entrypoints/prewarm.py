"""What cells of a sweep share, made once before they start: weights, token ids, the reference's log-probabilities; nothing is trained.

Everything lies in the cache, under its content, where each cell then finds it: without this it would be made by the first who comes, while
the others wait with their accelerators.  python -m alignment_lab.entrypoints.prewarm RUN  is one process of several.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import data
from ..actions import train
from ..config import Experiment, to_yaml
from ..distributed import ranks
from ..distributed.launch import launch_workers, local_process_count
from ..models.loading import load_policy
from ..models.locate import locate
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from . import worker

_loaded: dict[str, Any] = {}


class Enough(Exception):
    """The untouched model has been asked."""


def prewarm(
    spec: Experiment, folder: RunDirectory, console: Console, stop: StopRequest, *, tokens_only: bool
) -> None:
    """Make what this experiment needs; `folder` is for what libraries want to write. Raises as `run.execute` does."""
    train.prepare_libraries()
    processes = local_process_count(spec.parallel)
    if tokens_only or processes * spec.parallel.nodes == 1:
        _make(spec, folder, console, stop, tokens_only=tokens_only)
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.spec_file.write_text(to_yaml(spec))
    launch_workers(spec.parallel, folder, processes, console, stop, "alignment_lab.entrypoints.prewarm")


def _make(
    spec: Experiment, folder: RunDirectory, console: Console, stop: StopRequest, *, tokens_only: bool = False
) -> None:
    from .. import training
    from ..actions import assembly

    spec = replace(spec, tracking=replace(spec.tracking, tensorboard=False, wandb=False, trackio=False))
    tokens = assembly.tokenized(spec, data.load_rows(spec), locate(spec.model), console)
    if tokens_only:
        return
    trainer = assembly.build_trainer(spec, folder, tokens, console, _policy)

    def opening() -> None:
        raise Enough

    trainer.opening = opening
    with suppress(Enough):
        if ranks.world_size() == 1:
            trainer.begin()
        else:  # a sharded model can be asked only when it is wrapped
            training.fit(trainer, spec, folder, console, stop)


def _policy(spec: Experiment, where: Path, device: Any, dtype: Any) -> Any:
    """The model, loaded once for all that is asked of the same one."""
    key = repr((spec.model, spec.parallel, spec.method.generates))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_policy(spec, where, device, dtype)
    return _loaded[key]


def work(folder: RunDirectory) -> None:
    """One of several processes."""
    train.prepare_libraries()
    stop = StopRequest()
    with stop.listen():
        _make(train.read_spec(folder), folder, Console(quiet=not ranks.is_main_process()), stop)


if __name__ == "__main__":
    worker.main(work)
