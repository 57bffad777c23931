"""action=train: one run, from top to bottom. What needs no torch comes first: mistakes are reported before it is imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .. import data, estimate
from ..config import (
    DeviceType,
    Experiment,
    describe_difference,
    from_yaml,
    objective_value,
    to_plain,
    to_yaml,
)
from ..distributed import collectives, ranks
from ..distributed.launch import is_run_leader, launch_workers, local_process_count
from ..estimate import problems
from ..estimate.oom import explain_failure
from ..evaluation.answers import sample_rows, score_answers
from ..evaluation.intervals import Measured, before_after
from ..models.locate import locate_model, describe_remote_code
from ..report.render.terminal import show_run
from ..runtime import hardware, provenance
from ..runtime.errors import HungError, Interrupted, RunError, UserError, describe_error
from ..runtime.files import publish_directory, write_json
from ..runtime.phase_timer import PhaseTimer, peak_memory_gb
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from ..runtime.watchdog import Watchdog
from ..tracking import conclude_tracking, end_tracking

if TYPE_CHECKING:
    from ..methods import TrainContext

Row = dict[str, Any]
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
    leads = is_run_leader(spec.parallel)
    console = Console(quiet=not leads)
    spec, run = estimate.resolve_auto(spec), _agree_on_directory(run, spec)
    if run.state().get("state") == "finished" and run.state()["id"] == spec.run_id:
        message = f"{run.path}: this experiment is finished; give another directory to run it again."
        console.print(message, highlight=False, soft_wrap=True)
        return objective_value(spec, run.report())
    stop = StopRequest()
    with stop.listen(), recorded_attempt(spec, run) if leads else nullcontext():
        _check_and_train(spec, run, console, stop)
    if leads:
        from ..report.render.run_page import write_run_page  # imports matplotlib

        write_run_page(run)
        conclude_tracking(spec, run, console)
        show_run(run, console)
    if stop.signal:  # this run is finished all the same; the next one of a sweep must not start
        raise Interrupted(stop.signal, f"interrupted by {stop.signal.name}; this run is finished")
    return objective_value(spec, run.report())


def _check_and_train(spec: Experiment, run: RunDirectory, console: Console, stop: StopRequest) -> None:
    """Everything that needs no torch first; then train, in this process or in workers."""
    problems.require_runnable(spec, hardware.count_accelerators(), run.path)
    rows = data.load_rows(spec)
    model_path = locate_model(spec.model)
    console.print(f"{spec.name}  id {spec.run_id}  in {run.path}", highlight=False, soft_wrap=True)
    if spec.model.trust_remote_code:
        console.print(describe_remote_code(spec.model, model_path), highlight=False, soft_wrap=True)
    processes = local_process_count(spec.parallel)
    if processes * spec.parallel.nodes > 1 and not ranks.is_launched():
        launch_workers(spec.parallel, run, processes, console, stop)
    else:
        train(spec, run, rows, model_path, console, stop)


def _agree_on_directory(run: RunDirectory, spec: Experiment) -> RunDirectory:
    """The main process's directory: under torchrun each process composes its own, named by the time of day."""
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


def run_worker(run: RunDirectory) -> None:
    """One of the processes that `run_training` launched; spec.yaml holds the experiment."""
    spec = read_spec(run)
    prepare_libraries()
    failed = True
    stop = StopRequest()
    try:
        with stop.listen():
            train(
                spec,
                run,
                data.load_rows(spec),
                locate_model(spec.model),
                Console(quiet=not ranks.is_main_process()),
                stop,
            )
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
        run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
        try:
            yield
        except BaseException as error:
            run.fail(describe_error(error), resumable=isinstance(error, KeyboardInterrupt | HungError))
            end_tracking(run, failed=True)
            raise
        run.finish()


def _require_same_experiment(spec: Experiment, run: RunDirectory) -> None:
    """Raise UserError, naming what differs, where the directory belongs to another experiment."""
    if run.state().get("id", spec.run_id) == spec.run_id:
        return
    difference = describe_difference(run.spec(), to_plain(spec))
    raise UserError(
        f"{run.path}: {difference}: this is another experiment; give it a directory of its own: "
        "hydra.run.dir=DIRECTORY."
    )


def train(
    spec: Experiment, run: RunDirectory, rows: data.Splits, where: Path, console: Console, stop: StopRequest
) -> None:
    """Load, measure, train, measure, save; torch is imported here. Every process goes through all of it, and the first one writes."""
    try:
        _train(spec, run, rows, where, console, stop)
    except (OSError, RuntimeError, MemoryError) as error:
        if said := explain_failure(error, spec, run.path):
            raise RunError(said) from None
        raise


def _train(
    spec: Experiment, run: RunDirectory, rows: data.Splits, where: Path, console: Console, stop: StopRequest
) -> None:
    meter = PhaseTimer()
    with meter("load"):
        from .. import training
        from . import assembly

        tokens = assembly.tokenized(spec, rows, where, console)
        trainer = assembly.build_trainer(spec, run, tokens, console)
    before: list[Measured] = []

    def opening() -> None:
        watchdog.heartbeat()  # from here on something is to move; the reference may have been waited for, and long
        content = {"model": trainer.setting.weights, "data": rows.digest, "tokenizer": tokens.digest}
        if ranks.is_main_process():
            write_json(
                run.provenance_file, {**provenance.collect(_devices(trainer.setting)), "content": content}
            )
        before.append(measured(trainer, meter, initial=True))

    watchdog = Watchdog(
        spec.training.watchdog_minutes, run.path / f"stacks-{ranks.rank()}.txt", partial(_hung, run)
    )
    trainer.opening = opening
    trainer.asking = meter("reference")
    trainer.beat = watchdog.heartbeat
    with watchdog.watch():
        with meter("train"):
            training.fit(trainer, spec, run, console, stop)
        after = measured(trainer, meter)
        trainer.heed()
        with meter("save"):
            training.save(trainer, tokens.tokenizer, where, run.partial / "model")
    if ranks.is_main_process():
        setting = trainer.setting
        publish_directory(run.partial / "model", run.model)
        run.write_samples(sample_rows(setting.asked, before[0].answers, after.answers))
        write_json(
            run.report_file,
            report(
                setting, rows, trainer.state.global_step, meter, before_after(before[0].scores, after.scores)
            ),
        )
    collectives.barrier()


def _devices(setting: TrainContext) -> int:
    """How many accelerators of this machine the run uses."""
    return 0 if setting.device.type == "cpu" else ranks.world_size() // setting.spec.parallel.nodes


def _hung(run: RunDirectory, said: str) -> None:
    """What is left to do for a process that will not return."""
    if ranks.is_main_process():
        run.fail(said, resumable=True)
        print(f"error: {said}", file=sys.stderr, flush=True)


def measured(trainer: Any, meter: PhaseTimer, *, initial: bool = False) -> Measured:
    """Scores and greedy answers of the model as it is now, on the held-out rows."""
    from ..engine.generation import generate_answers

    setting = trainer.setting
    with meter("evaluate"):
        scores = trainer.heldout_scores(initial=initial)
    asked = setting.asked
    with meter("generate"):
        progress = trainer.watched("answers before" if initial else "answers after")
        prompts = [data.prompt_messages(row) for row in asked]
        answers = generate_answers(
            trainer.model,
            setting.tokenizer,
            prompts,
            setting.spec.eval,
            setting.device,
            setting.dtype,
            progress,
        )
    return Measured({**scores, **score_answers(answers, asked)}, answers)


def report(setting: TrainContext, rows: data.Splits, steps: int, meter: PhaseTimer, metrics: Row) -> Row:
    """report.json: what the run came to. Tokens are those of the rows, however the engine lays them out."""
    spec = setting.spec
    tokens = round(steps * setting.tokens_per_step)
    counts = {
        "train": len(setting.train),
        "available": setting.available,
        "eval": len(data.group_pairs(setting.scored)),  # pairs are as many whether they were parted or not
        "dropped": dict(rows.dropped),
        "truncated": rows.truncated,
    }
    seconds = meter.report()
    return {
        "id": spec.run_id,
        "name": spec.name,
        "method": spec.method.name,
        "model": spec.model.name,
        "data": spec.data.name,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "rows": counts,
        "steps": steps,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": round(tokens / seconds["train"], 1),
        "peak_memory_gb": round(peak_memory_gb(), 2),
        "metrics": metrics,
    }
