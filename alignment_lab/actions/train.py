"""One run, top to bottom. What needs no torch comes first, so that a mistake is told before anything heavy starts."""

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
    Action,
    DataSource,
    DeviceType,
    Experiment,
    describe_difference,
    from_yaml,
    objective_value,
    to_plain,
    to_yaml,
)
from ..distributed import collectives, ranks
from ..distributed.launch import launch_workers, local_process_count
from ..distributed.rendezvous import find_rendezvous
from ..estimate import problems
from ..estimate.oom import explain_failure
from ..evaluation.answers import sample_rows, score_answers
from ..evaluation.intervals import Measured, before_after
from ..models.locate import locate, describe_remote_code
from ..report.render.terminal import show_run
from ..runtime import hardware, provenance
from ..runtime.errors import HungError, Interrupted, RunError, UserError, describe_error
from ..runtime.files import publish_directory, write_json
from ..runtime.phase_timer import PhaseTimer, peak_memory_gb
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from ..runtime.watchdog import Watchdog
from ..tracking import conclude_tracking, end_tracking
from . import plan

if TYPE_CHECKING:
    from ..methods import TrainContext

Row = dict[str, Any]
TALKATIVE = (  # loggers that have nothing to tell a user
    "bitsandbytes",
    "DeepSpeed",
    "torch.distributed.elastic",
    "transformers.trainer_utils",  # that a run goes on with another save_steps
    "transformers.utils.loading_report",  # a table; model.load_model says what is missing
)
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def execute(spec: Experiment, run: RunDirectory) -> float | None:
    """Run the experiment and leave a complete run directory; gives its objective, where that was measured.

    Raises UserError for a mistake; the directory records any failure.
    """
    leads = ranks.is_main_process() and find_rendezvous(spec.parallel.nodes).node_rank == 0
    console = Console(quiet=not leads)
    if spec.action is Action.plan:
        plan.show_plan(spec, _readable(spec), console)
        run.discard_if_unused()
        return None
    spec, run = estimate.resolve_auto(spec), _agreed(run, spec)
    if run.state().get("state") == "finished" and run.state()["id"] == spec.run_id:
        console.print(
            f"{run.path}: this experiment is finished; give another directory to run it again.",
            highlight=False,
            soft_wrap=True,
        )
        return objective_value(spec, run.report())
    stop = StopRequest()
    with stop.listen(), recorded_attempt(spec, run) if leads else nullcontext():
        problems.require_runnable(spec, hardware.count_accelerators(), run.path)
        rows = data.load_rows(spec)
        where = locate(spec.model)
        console.print(f"{spec.name}  id {spec.run_id}  in {run.path}", highlight=False, soft_wrap=True)
        if spec.model.trust_remote_code:
            console.print(describe_remote_code(spec.model, where), highlight=False, soft_wrap=True)
        processes = local_process_count(spec.parallel)
        if processes * spec.parallel.nodes > 1 and not ranks.is_launched():
            launch_workers(spec.parallel, run, processes, console, stop)
        else:
            train(spec, run, rows, where, console, stop)
    if leads:
        from ..report.render.run_page import write_run_page  # matplotlib: not needed to answer a mistake

        write_run_page(run)
        conclude_tracking(spec, run, console)
        show_run(run, console)
    if stop.signal:  # at the very end: this run is finished, what would follow it does not start
        raise Interrupted(stop.signal, f"interrupted by {stop.signal.name}; this run is finished")
    return objective_value(spec, run.report())


def _readable(spec: Experiment) -> data.Splits | None:
    """The rows, where they are to be had without a network."""
    return None if spec.data.source is DataSource.hub else data.load_rows(spec)


def _agreed(run: RunDirectory, spec: Experiment) -> RunDirectory:
    """The first process's directory: torchrun and accelerate start the command itself, and the clock names a directory for each."""
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
    """What libraries read when they are imported, and whom of them the user need not hear."""
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    if not hardware.count_accelerators():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for one, and say so
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers|accelerate")


def work(run: RunDirectory) -> None:
    """One of several processes that `execute` launched: the experiment is the one that it wrote down."""
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
                locate(spec.model),
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
    """The experiment that spec.yaml says. Raises UserError where there is none."""
    if not run.spec_file.exists():
        raise UserError(f"{run.path}: its spec.yaml is gone; give the command again.")
    return from_yaml(run.spec_file.read_text())


@contextmanager
def recorded_attempt(spec: Experiment, run: RunDirectory) -> Iterator[None]:
    """Keep run.json true: running, then finished, interrupted, or failed with the reason."""
    _refuse_another(spec, run)
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


def _refuse_another(spec: Experiment, run: RunDirectory) -> None:
    """Raise UserError, naming what differs, where the directory belongs to another experiment."""
    if run.state().get("id", spec.run_id) == spec.run_id:
        return
    said = describe_difference(run.spec(), to_plain(spec))
    raise UserError(
        f"{run.path}: {said}: this is another experiment; give it a directory of its own: hydra.run.dir=DIRECTORY."
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
