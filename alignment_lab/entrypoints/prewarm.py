"""Computes what cells of a sweep share before they start: weights, token ids, reference log-probabilities.

Trains nothing. The results lie in the cache by their content, where each cell finds them. Otherwise the first
cell would compute them while the others wait with their accelerators. One of several processes is

    python -m alignment_lab.entrypoints.prewarm RUN
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from .. import data
from ..actions import train
from ..config import Experiment, to_yaml
from ..distributed import ranks
from ..distributed.environment import settle_environment
from ..distributed.launch import launch_workers, local_process_count
from ..models.loading import load_policy
from ..models.locate import locate_model
from ..runtime.errors import Interrupted
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from . import worker

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_policies: dict[str, PreTrainedModel] = {}  # the policy that was loaded last


class ReferenceReady(Exception):
    """The reference log-probabilities are stored: training need not start."""


def prewarm(
    spec: Experiment, folder: RunDirectory, console: Console, stop: StopRequest, *, tokens_only: bool
) -> None:
    """Compute what this experiment needs; libraries may write to `folder`.

    Raises as `actions.run_action` does.
    """
    settle_environment()
    train.prepare_libraries()
    processes = local_process_count(spec.parallel)
    if tokens_only or processes * spec.parallel.nodes == 1:
        _compute(spec, folder, console, stop, tokens_only=tokens_only)
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.spec_file.write_text(to_yaml(spec))
    launch_workers(spec.parallel, folder, processes, console, stop, "alignment_lab.entrypoints.prewarm")
    if stop.signal:  # it came when they had ended
        raise Interrupted(stop.signal)


def _compute(
    spec: Experiment, folder: RunDirectory, console: Console, stop: StopRequest, *, tokens_only: bool = False
) -> None:
    from ..actions import assembly, tokenized
    from ..training import Hooks, Trainer

    tokens = tokenized.tokenize(spec, data.load_rows(spec), locate_model(spec.model), console)
    if tokens_only:
        return

    def on_start(trainer: Trainer) -> None:
        raise ReferenceReady

    trainer = assembly.build_trainer(
        spec, tokens, console, load=_load_policy, hooks=Hooks(on_start=on_start), stop=stop
    )
    with suppress(ReferenceReady):
        if ranks.world_size() == 1:
            trainer.start()
        else:  # a sharded model can compute only once it is wrapped
            trainer.prepare()


def _load_policy(spec: Experiment, path: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The policy, loaded once for passes in a row that need the same one."""
    key = repr((spec.model, spec.parallel, spec.method.generates))
    if key not in _policies:
        _policies.clear()
        _policies[key] = load_policy(spec, path, device, dtype)
    return _policies[key]


def run_prewarm_worker(folder: RunDirectory, stop: StopRequest) -> None:
    """One of several processes that `prewarm` launched."""
    train.prepare_libraries()
    _compute(train.read_spec(folder), folder, Console(quiet=not ranks.is_main_process()), stop)


if __name__ == "__main__":
    worker.main(run_prewarm_worker)
