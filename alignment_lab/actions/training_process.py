"""One process of a run: load, measure, train, measure, save. Every process goes through all of it; the main
one writes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .. import content, data
from ..config import DataSource, Experiment
from ..data.mixture import describe_unit, describe_unused, source_table
from ..distributed import collectives, ranks
from ..estimate.oom import explain_failure
from ..evaluation.answers import sample_rows, score_answers
from ..evaluation.intervals import Measured, before_after
from ..evaluation.prompts import row_scores
from ..runtime import provenance
from ..runtime.attempts import cost_so_far
from ..runtime.errors import RunError
from ..runtime.files import read_json, write_json
from ..runtime.phase_timer import PhaseTimer, peak_memory_gb
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from ..runtime.watchdog import Watchdog
from .run_report import report
from .uploads import checkpoint_uploads

if TYPE_CHECKING:
    from ..training import Callback, TrainContext, Trainer
    from .tokenized import TokenizedData


def train(
    spec: Experiment,
    run: RunDirectory,
    splits: data.Splits,
    model_folder: Path,
    console: Console,
    stop: StopRequest,
) -> None:
    """Train one experiment. torch is imported here. Raises RunError where memory or the disk did not
    suffice.
    """
    meter = CostMeter(run)
    try:
        _train(spec, run, splits, model_folder, console, stop, meter)
    except (OSError, RuntimeError, MemoryError) as error:
        if explanation := explain_failure(error, spec, run.path):
            raise RunError(explanation) from None
        raise
    finally:
        meter.record()


class CostMeter:
    """What this attempt has cost so far, for run.json: an attempt that is killed says no more."""

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.timer = run, PhaseTimer()
        self.step: int | None = None  # the last one that was taken

    def measure(self, trainer: Trainer | None = None) -> dict[str, Any]:
        """`cost` as run.json has it."""
        self.step = trainer.state.step if trainer else self.step
        return cost_so_far(self.timer.report(), self.step, ranks.world_size(), peak_memory_gb())

    def record(self, trainer: Trainer | None = None) -> None:
        """Write it, in the main process; on a full disk the last one stays."""
        if ranks.is_main_process():
            with suppress(OSError):
                self.run.update_state(cost=self.measure(trainer))


def _train(
    spec: Experiment,
    run: RunDirectory,
    splits: data.Splits,
    model_folder: Path,
    console: Console,
    stop: StopRequest,
    meter: CostMeter,
) -> None:
    timer = meter.timer
    before: list[Measured] = []
    stacks = run.path / f"stacks-{ranks.rank()}.txt"
    watchdog = Watchdog(spec.training.watchdog_minutes, stacks, partial(_on_hang, run))
    files = _read_files(spec, model_folder) if ranks.is_main_process() else None
    with timer("load"):
        from ..training.saving import rehearse_save, save_model
        from . import tokenized

        tokens = tokenized.tokenize(spec, splits, model_folder, console)
        if ranks.is_main_process():
            _tell_what_was_left_out(spec, run, splits, console)

        def on_start(trainer: Trainer) -> None:
            watchdog.heartbeat()  # the watchdog starts here: the reference may have been waited for, and long
            if files:
                _record_content(run, trainer, tokens, files.result())
            before.append(measure(trainer, timer, initial=True))
            meter.record(trainer)

        trainer = _build_trainer(spec, run, tokens, console, stop, meter, watchdog, on_start)
        rehearse_save(trainer.context, run.partial / "model")
    with watchdog.watch():
        with timer("train"), _last_step(trainer, meter):
            trainer.train()
        after = measure(trainer, timer)
        trainer.check_stop()
        with timer("save"):
            problem = save_model(trainer, model_folder, run.partial / "model")
    if ranks.is_main_process():
        samples = sample_rows(trainer.context.generation_rows, before[0].answers, after.answers)
        for kept in run.publish_results(samples, is_proved=problem is None):
            trainer.context.notify(f"{kept}: this was in the run's directory, and not of the run: set aside")
        run.write_row_scores(row_scores(after.scores))
        metrics = before_after(before[0].scores, after.scores)
        write_json(run.report_file, report(trainer, tokens, meter, metrics))
    collectives.barrier()
    _require_proved(run, problem)


def _tell_what_was_left_out(
    spec: Experiment, run: RunDirectory, splits: data.Splits, console: Console
) -> None:
    """Columns that have no effect, and quarantine.jsonl, a line each."""
    sources = spec.data.mixture()
    own = {
        name: parts for name, parts in splits.unused.items() if sources[name].kind is not DataSource.embedded
    }
    lines = describe_unused(own)
    if splits.quarantine:
        run.write_quarantine(data.bad_rows(spec.data, splits.quarantine))
        told = data.describe_quarantine(spec.data, splits.quarantine)
        lines.append(f"quarantine: {told}, in {run.quarantine_file}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    if table := source_table(splits.sources):
        console.print(table)
        if unit := describe_unit(splits.sources):
            console.print(unit, highlight=False, soft_wrap=True)


def _require_proved(run: RunDirectory, problem: str | None) -> None:
    """Raise RunError with what `save_model` found, once all else is published."""
    if problem:
        raise RunError(
            f"the model is trained, and is not proved to be saved right: {problem.removesuffix('.')}; "
            f"its weights are kept in {run.unproved_model}, its figures in {run.report_file.name}."
        )


@contextmanager
def _last_step(trainer: Trainer, meter: CostMeter) -> Iterator[None]:
    """However the block ends, the meter knows the last step that was taken."""
    try:
        yield
    finally:
        meter.step = trainer.state.step


def _build_trainer(
    spec: Experiment,
    run: RunDirectory,
    tokens: TokenizedData,
    console: Console,
    stop: StopRequest,
    meter: CostMeter,
    watchdog: Watchdog,
    on_start: Callable[[Trainer], None],
) -> Trainer:
    """The trainer with what this run does at the loop's turning points."""
    from ..checkpoints.manager import CheckpointManager
    from ..training import Hooks
    from ..training.nonfinite import NonfiniteGuard
    from . import assembly

    def notify(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    hooks = Hooks(
        heartbeat=watchdog.heartbeat,
        reference_timer=meter.timer("reference"),
        on_start=on_start,
        on_save=meter.record,
        on_nonfinite=NonfiniteGuard(run, spec.training, notify),
    )
    return assembly.build_trainer(
        spec,
        tokens,
        console,
        hooks=hooks,
        callbacks=partial(_callbacks, spec, run, console),
        checkpoints=CheckpointManager(run, spec.run_id, spec.training.save_total_limit, notify),
        stop=stop,
    )


def _callbacks(
    spec: Experiment, run: RunDirectory, console: Console, context: TrainContext
) -> list[Callback]:
    """What the main process tells: metrics.jsonl first, then the trackers that read it, then the terminal."""
    from ..training.callbacks import MetricsLog, ProgressCallback, TrackerCallback, UploadCallback

    if not ranks.is_main_process():
        return []
    told: list[Callback] = [
        MetricsLog(run, context),
        TrackerCallback(spec, run, console),
        ProgressCallback(console),
    ]
    if uploads := checkpoint_uploads(spec, run):
        told.append(UploadCallback(uploads.start_checkpoint, uploads.stop))
    return told


def _read_files(spec: Experiment, model_folder: Path) -> Future[content.FileDigests]:
    """The digests of all files, read while the model is loaded from the same ones."""
    executor = ThreadPoolExecutor(1)
    files = executor.submit(content.read_files, spec, model_folder)
    executor.shutdown(wait=False)
    return files


def _record_content(
    run: RunDirectory, trainer: Trainer, tokens: TokenizedData, files: content.FileDigests
) -> None:
    """Write into provenance.json what the run starts from.

    Raises UserError where the checkpoint that it goes on from was trained on other content: large files that
    were not read before torch was imported are known only now.
    """
    from ..models.tokenizer import template_digest

    context, splits = trainer.context, tokens.splits
    first_step = trainer.checkpoints is None or trainer.checkpoints.last_saved_step is None
    recorded = read_json(run.provenance_file) or {}
    changes = content.find_changes(recorded, context.spec, tokens.model_folder, splits, now=files)
    if changes and not first_step:
        raise content.refusal(run, changes)
    digests = {
        "model": context.weights_digest,
        "data": splits.digest,
        "tokenizer": tokens.tokenizer_digest,
        "chat_template": template_digest(tokens.tokenizer),
    }
    found = {"content": digests, "files": files, "rows": splits.read}
    provenance.record_content(run.provenance_file, found, first_step=first_step)


def _on_hang(run: RunDirectory, message: str) -> None:
    """What is left to do for a process that will not return."""
    if ranks.is_main_process():
        run.fail(message, resumable=True)
        print(f"error: {message}", file=sys.stderr, flush=True)


def measure(trainer: Trainer, timer: PhaseTimer, *, initial: bool = False) -> Measured:
    """Scores and greedy answers of the model as it is now, on the held-out rows."""
    from ..engine.generation import generate_answers

    context = trainer.context
    with timer("evaluate"):
        scores = trainer.heldout.scores(initial=initial)
    rows = context.generation_rows
    with timer("generate"):
        answers = generate_answers(
            trainer.model,
            context.tokenizer,
            rows,
            context.spec.eval,
            context.device,
            context.dtype,
            trainer.heldout.watch("answers before" if initial else "answers after"),
        )
    return Measured({**scores, **score_answers(answers, rows)}, answers)
