"""action=train: one run, from top to bottom.

What needs no torch comes first: mistakes are reported before it is imported.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import content, data, estimate
from ..checkpoints import manifest
from ..config import (
    DeviceType,
    Experiment,
    describe_adapter_rate,
    describe_difference,
    describe_no_effect,
    from_yaml,
    objective_value,
    to_plain,
    to_yaml,
)
from ..config.dotted import flatten
from ..distributed import collectives, ranks
from ..distributed.environment import describe_removed, settle_environment
from ..distributed.launch import is_run_leader, launch_workers, local_process_count
from ..estimate import problems
from ..estimate.weights import weight_problems
from ..models.locate import describe_remote_code, locate_model
from ..report.render.terminal import show_run
from ..runtime import hardware, provenance
from ..runtime.errors import HungError, Interrupted, UserError, describe_error
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from ..tracking import conclude_tracking, end_tracking
from .training_process import train
from .uploads import check_uploads, upload_model

NOISY_LOGGERS = (  # their warnings do not concern the user
    "bitsandbytes",
    "DeepSpeed",
    "torch.distributed.elastic",
    "transformers.trainer_utils",  # warns when a run is resumed with another save_steps
    "transformers.utils.loading_report",  # prints a table; models.loading reports what is missing
)
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def run_training(spec: Experiment, run: RunDirectory) -> float | None:
    """Train the experiment and leave a complete run directory; returns its objective, where it was measured.

    Raises UserError for a mistake; the directory records any failure.
    """
    require_encodable(spec, run)
    removed = settle_environment()
    leads = is_run_leader(spec.parallel)
    console = Console(quiet=not leads)
    spec, run = estimate.resolve_auto(spec), _agree_on_directory(run, spec)
    run.require_own()
    if run.state().get("state") == "finished" and run.state()["id"] == spec.run_id:
        if changed := content.finished_elsewhere(run, spec):
            raise UserError(changed)
        message = f"{run.path}: this experiment is finished; give another directory to run it again."
        console.print(message, highlight=False, soft_wrap=True)
        if leads and not run.page_file.exists():  # killed before it was written
            _publish(spec, run, console)
        return objective_value(spec, run.report())
    stop = StopRequest()
    with stop.listen():
        with recorded_attempt(spec, run) if leads else nullcontext():
            _check_and_train(spec, run, console, stop, list(describe_removed(removed, spec)))
            stop.deferred = True  # nothing is left but to say what it came to
        if leads:
            _publish(spec, run, console)
            upload_model(spec, run, console, stop)
    if stop.signal:  # this run is finished all the same; the next one of a sweep must not start
        raise Interrupted(stop.signal, f"interrupted by {stop.signal.name}; this run is finished")
    return objective_value(spec, run.report())


def _publish(spec: Experiment, run: RunDirectory, console: Console) -> None:
    """The page, the trackers' summary, and the table in the terminal."""
    from ..report.render.run_page import write_run_page  # imports matplotlib

    write_run_page(run)
    conclude_tracking(spec, run, console)
    show_run(run, console)


def require_encodable(spec: Experiment, run: RunDirectory) -> None:
    """Refuse text that is no UTF-8: safetensors and tokenizers cannot open such a path."""
    settings = {"hydra.run.dir": str(run.path.absolute()), **flatten(to_plain(spec))}
    for key, value in settings.items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{key}={str(value)!a}: holds bytes that are no UTF-8, or that this locale does not read; "
                "rename it, or set LC_ALL=C.UTF-8."
            ) from None


def _check_and_train(
    spec: Experiment, run: RunDirectory, console: Console, stop: StopRequest, notes: Sequence[str]
) -> None:
    """Everything that needs no torch first; then train, in this process or in workers."""
    problems.require_runnable(spec, hardware.count_accelerators(), run.path)
    unreachable = check_uploads(spec, run) if is_run_leader(spec.parallel) else None
    rows = data.load_rows(spec)
    model_path = locate_model(spec.model)
    problems.raise_problems(list(weight_problems(spec, model_path)))
    console.print(f"{spec.name}  id {spec.run_id}  in {run.path}", highlight=False, soft_wrap=True)
    remote_code = [describe_remote_code(spec.model, model_path)] if spec.model.trust_remote_code else []
    settings = (describe_no_effect(spec), describe_adapter_rate(spec), unreachable)
    for line in filter(None, (*settings, *remote_code, *data.readers.unread_splits(spec.data), *notes)):
        console.print(line, highlight=False, soft_wrap=True)
    processes = local_process_count(spec.parallel)
    if is_run_leader(spec.parallel):
        if other_base := content.check_adapter_base(spec, model_path):
            console.print(other_base, highlight=False, soft_wrap=True)
        for line in _compare_attempts(spec, run, rows, model_path, processes):
            console.print(line, highlight=False, soft_wrap=True)
    if processes * spec.parallel.nodes > 1 and not ranks.is_launched():
        launch_workers(spec.parallel, run, processes, console, stop)
    else:
        train(spec, run, rows, model_path, console, stop)


def _compare_attempts(
    spec: Experiment, run: RunDirectory, rows: data.Splits, model_path: Path, processes: int
) -> Iterator[str]:
    """Record this attempt in provenance.json; a line for what is not as it was in the attempt before.

    Raises UserError where checkpoints were trained on other content than there is now.
    """
    recorded = read_json(run.provenance_file) or {}
    devices = ranks.world_size() // spec.parallel.nodes if ranks.is_launched() else processes
    on_cpu = spec.parallel.device is DeviceType.cpu
    line = provenance.record_attempt(
        run.provenance_file, run.state().get("attempts", 1), 0 if on_cpu else devices
    )
    if line:
        yield line
    changes = content.find_changes(recorded, spec, model_path, rows)
    if changes and manifest.list_checkpoints(run.checkpoints):
        raise content.refusal(run, changes)
    if changes:
        yield f"{'; '.join(changes)}; there is no checkpoint yet: training starts anew on what is there now"


def _agree_on_directory(run: RunDirectory, spec: Experiment) -> RunDirectory:
    """Rank 0's directory: under torchrun each process composes its own, named by the time of day."""
    if not ranks.is_launched():
        return run
    collectives.init_process_group(
        cpu=spec.parallel.device is DeviceType.cpu or not hardware.count_accelerators()
    )
    common = RunDirectory(collectives.broadcast(run.path))
    if common != run:
        run.discard_if_unused()
    return common


def prepare_libraries() -> None:
    """Set what libraries read when they are imported, and silence what does not concern the user."""
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    if not hardware.count_accelerators():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would search for one, and log that
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers|accelerate")


def run_worker(run: RunDirectory, stop: StopRequest) -> None:
    """One of the processes that `run_training` launched; spec.yaml holds the experiment."""
    spec = read_spec(run)
    prepare_libraries()
    failed = True
    console = Console(quiet=not ranks.is_main_process())
    try:
        train(spec, run, data.load_rows(spec), locate_model(spec.model), console, stop)
        failed = False
    except Interrupted as reason:
        if ranks.is_main_process():
            run.fail(str(reason), resumable=True)
        raise
    finally:
        end_tracking(run, failed=failed)


def read_spec(run: RunDirectory) -> Experiment:
    """The experiment of spec.yaml. Raises UserError where there is none."""
    if not run.spec_file.exists():
        raise UserError(f"{run.path}: spec.yaml is missing; give the command again.")
    return from_yaml(run.spec_file.read_text())


@contextmanager
def recorded_attempt(spec: Experiment, run: RunDirectory) -> Iterator[None]:
    """Keep run.json true: running, then finished, interrupted, or failed with the reason."""
    _require_same_experiment(spec, run)
    prepare_libraries()
    with run.locked():
        before = run.state()
        run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
        try:
            yield
        except BaseException as error:
            if _is_refusal(error, before, run):
                numbered = {"attempts": run.state()["attempts"], "error": describe_error(error)}
                run.restore_state(before | numbered)
            else:
                run.fail(describe_error(error), resumable=isinstance(error, KeyboardInterrupt | HungError))
            end_tracking(run, failed=True)
            raise
        run.finish()


def _is_refusal(error: BaseException, before: dict[str, Any], run: RunDirectory) -> bool:
    """Whether a run that ended before its time was refused, for a mistake, before this attempt trained."""
    had_ended = before.get("state") in ("interrupted", "failed")
    return isinstance(error, UserError) and had_ended and not run.state().get("training")


def _require_same_experiment(spec: Experiment, run: RunDirectory) -> None:
    """Raise UserError, naming what differs, where the directory belongs to another experiment."""
    if run.state().get("id", spec.run_id) == spec.run_id:
        return
    difference = describe_difference(run.spec(), to_plain(spec))
    raise UserError(
        f"{run.path}: {difference}: this is another experiment; give it a directory of its own: "
        "hydra.run.dir=DIRECTORY."
    )
