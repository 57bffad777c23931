"""What cells of a sweep share, made once before they start: weights, token ids, the reference's log-probabilities; nothing is trained.

Everything lies in the cache, under its content, where each cell then finds it: without this it would be made by the first who comes, while
the others wait with their accelerators.  python -m alignment_lab.share RUN  is one process of several.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from . import cluster, data, model, run, worker
from .artifacts import RunDirectory
from .launch import local
from .signals import Stop
from .spec import Experiment, to_yaml

_loaded: dict[str, Any] = {}


class Enough(Exception):
    """The untouched model has been asked."""


def share(spec: Experiment, folder: RunDirectory, console: Console, stop: Stop, *, tokens_only: bool) -> None:
    """Make what this experiment needs; `folder` is for what libraries want to write. Raises as `run.execute` does."""
    run.prepare()
    processes = local.processes(spec.parallel)
    if tokens_only or processes * spec.parallel.nodes == 1:
        _make(spec, folder, console, stop, tokens_only=tokens_only)
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.spec_file.write_text(to_yaml(spec))
    local.launch(spec.parallel, folder, processes, console, stop, "alignment_lab.share")


def _make(spec: Experiment, folder: RunDirectory, console: Console, stop: Stop, *, tokens_only: bool = False) -> None:
    from . import assembly, training

    spec = replace(spec, tracking=replace(spec.tracking, tensorboard=False, wandb=False, trackio=False))
    tokens = assembly.tokenised(spec, data.load(spec), model.locate(spec.model), console)
    if tokens_only:
        return
    trainer = assembly.trainer(spec, folder, tokens, console, _policy)

    def opening() -> None:
        raise Enough

    trainer.opening = opening
    with suppress(Enough):
        if cluster.world() == 1:
            trainer.begin()
        else:  # a sharded model can be asked only when it is wrapped
            training.fit(trainer, spec, folder, console, stop)


def _policy(spec: Experiment, where: Path, device: Any, dtype: Any) -> Any:
    """The model, loaded once for all that is asked of the same one."""
    key = repr((spec.model, spec.parallel, spec.method.generates))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = model.load_policy(spec, where, device, dtype)
    return _loaded[key]


def work(folder: RunDirectory) -> None:
    """One of several processes."""
    run.prepare()
    stop = Stop()
    with stop.heeded():
        _make(run.written(folder), folder, Console(quiet=not cluster.is_first()), stop)


if __name__ == "__main__":
    worker.main(work)
