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

from . import checks, cluster, data, estimate, model, plan, provenance, trouble
from .artifacts import RunDirectory, publish_directory, write_json
from .errors import Hung, Interrupted, RunError, UserError, told
from .eval.answers import measure, samples
from .eval.interval import Measured, before_after
from .launch import local
from .meter import Meter, peak_memory_gb
from .report.terminal import show_run
from .signals import Stop
from .spec import Action, DataSource, Device, Experiment, apart, from_yaml, reached, to_plain, to_yaml
from .tracking import conclude, end_tracking
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .method import Setting

Row = dict[str, Any]
TALKATIVE = (  # loggers that have nothing to tell a user
    "bitsandbytes",
    "DeepSpeed",
    "torch.distributed.elastic",
    "transformers.trainer_utils",  # that a run goes on with another save_steps
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
    leads = cluster.is_first() and cluster.machines(spec.parallel.nodes).number == 0
    console = Console(quiet=not leads)
    if spec.action is Action.plan:
        plan.show(spec, _readable(spec), console)
        run.discard()
        return None
    spec, run = estimate.resolve(spec), _agreed(run, spec)
    if run.state().get("state") == "finished" and run.state()["id"] == spec.run_id:
        console.print(f"{run.path}: this experiment is finished; give another directory to run it again.", highlight=False, soft_wrap=True)
        return reached(spec, run.report())
    stop = Stop()
    with stop.heeded(), recorded(spec, run) if leads else nullcontext():
        checks.refuse(spec, cluster.visible_accelerators(), run.path)
        rows = data.load(spec)
        where = model.locate(spec.model)
        console.print(f"{spec.name}  id {spec.run_id}  in {run.path}", highlight=False, soft_wrap=True)
        if spec.model.trust_remote_code:
            console.print(model.trusted(spec.model, where), highlight=False, soft_wrap=True)
        processes = local.processes(spec.parallel)
        if processes * spec.parallel.nodes > 1 and not cluster.launched():
            local.launch(spec.parallel, run, processes, console, stop)
        else:
            train(spec, run, rows, where, console, stop)
    if leads:
        from .report.page import write_page  # matplotlib: not needed to answer a mistake

        write_page(run)
        conclude(spec, run, console)
        show_run(run, console)
    if stop.asked:  # at the very end: this run is finished, what would follow it does not start
        raise Interrupted(stop.asked, f"interrupted by {stop.asked.name}; this run is finished")
    return reached(spec, run.report())


def _readable(spec: Experiment) -> data.Rows | None:
    """The rows, where they are to be had without a network."""
    return None if spec.data.source is DataSource.hub else data.load(spec)


def _agreed(run: RunDirectory, spec: Experiment) -> RunDirectory:
    """The first process's directory: torchrun and accelerate start the command itself, and the clock names a directory for each."""
    if not cluster.launched():
        return run
    cluster.join(cpu=spec.parallel.device is Device.cpu or not cluster.visible_accelerators())
    common = RunDirectory(cluster.agreed(run.path))
    if common != run:
        run.discard()
    return common


def prepare() -> None:
    """What libraries read when they are imported, and whom of them the user need not hear."""
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    if not cluster.visible_accelerators():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for one, and say so
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers|accelerate")


def work(run: RunDirectory) -> None:
    """One of several processes that `execute` launched: the experiment is the one that it wrote down."""
    spec = written(run)
    prepare()
    failed = True
    stop = Stop()
    try:
        with stop.heeded():
            train(spec, run, data.load(spec), model.locate(spec.model), Console(quiet=not cluster.is_first()), stop)
        failed = False
    except Interrupted as reason:
        if cluster.is_first():
            run.fail(str(reason), resumable=True)
        raise
    finally:
        end_tracking(run, failed=failed)


def written(run: RunDirectory) -> Experiment:
    """The experiment that spec.yaml says. Raises UserError where there is none."""
    if not run.spec_file.exists():
        raise UserError(f"{run.path}: its spec.yaml is gone; give the command again.")
    return from_yaml(run.spec_file.read_text())


@contextmanager
def recorded(spec: Experiment, run: RunDirectory) -> Iterator[None]:
    """Keep run.json true: running, then finished, interrupted, or failed with the reason."""
    _refuse_another(spec, run)
    prepare()
    with run.owned():
        run.begin(run_id=spec.run_id, spec=to_yaml(spec))
        try:
            yield
        except BaseException as error:
            run.fail(told(error), resumable=isinstance(error, KeyboardInterrupt | Hung))
            end_tracking(run, failed=True)
            raise
        run.finish()


def _refuse_another(spec: Experiment, run: RunDirectory) -> None:
    """Raise UserError, naming what differs, where the directory belongs to another experiment."""
    if run.state().get("id", spec.run_id) == spec.run_id:
        return
    said = apart(run.spec(), to_plain(spec))
    raise UserError(f"{run.path}: {said}: this is another experiment; give it a directory of its own: hydra.run.dir=DIRECTORY.")


def train(spec: Experiment, run: RunDirectory, rows: data.Rows, where: Path, console: Console, stop: Stop) -> None:
    """Load, measure, train, measure, save; torch is imported here. Every process goes through all of it, and the first one writes."""
    try:
        _train(spec, run, rows, where, console, stop)
    except (OSError, RuntimeError, MemoryError) as error:
        if said := trouble.sentence(error, spec, run.path):
            raise RunError(said) from None
        raise


def _train(spec: Experiment, run: RunDirectory, rows: data.Rows, where: Path, console: Console, stop: Stop) -> None:
    meter = Meter()
    with meter("load"):
        from . import assembly, training

        tokens = assembly.tokenised(spec, rows, where, console)
        trainer = assembly.trainer(spec, run, tokens, console)
    before: list[Measured] = []

    def opening() -> None:
        watchdog.beat()  # from here on something is to move; the reference may have been waited for, and long
        content = {"model": trainer.setting.weights, "data": rows.digest, "tokenizer": model.tokenizer_digest(tokens.tokenizer)}
        if cluster.is_first():
            write_json(run.provenance_file, {**provenance.collect(_devices(trainer.setting)), "content": content})
        before.append(measured(trainer, meter, initial=True))

    watchdog = Watchdog(spec.training.watchdog_minutes, run.path / f"stacks-{cluster.rank()}.txt", partial(_hung, run))
    trainer.opening = opening
    trainer.asking = meter("reference")
    trainer.beat = watchdog.beat
    with watchdog.watching():
        with meter("train"):
            training.fit(trainer, spec, run, console, stop)
        after = measured(trainer, meter)
        trainer.heed()
        with meter("save"):
            training.save(trainer, tokens.tokenizer, where, run.partial / "model")
    if cluster.is_first():
        setting = trainer.setting
        publish_directory(run.partial / "model", run.model)
        run.write_samples(samples(setting.asked, before[0].answers, after.answers))
        write_json(run.report_file, report(setting, rows, trainer.state.global_step, meter, before_after(before[0].scores, after.scores)))
    cluster.barrier()


def _devices(setting: Setting) -> int:
    """How many accelerators of this machine the run uses."""
    return 0 if setting.device.type == "cpu" else cluster.world() // setting.spec.parallel.nodes


def _hung(run: RunDirectory, said: str) -> None:
    """What is left to do for a process that will not return."""
    if cluster.is_first():
        run.fail(said, resumable=True)
        print(f"error: {said}", file=sys.stderr, flush=True)


def measured(trainer: Any, meter: Meter, *, initial: bool = False) -> Measured:
    """Scores and greedy answers of the model as it is now, on the held-out rows."""
    from .generation import answer

    setting = trainer.setting
    with meter("evaluate"):
        scores = trainer.heldout_scores(initial=initial)
    asked = setting.asked
    with meter("generate"):
        progress = trainer.watched("answers before" if initial else "answers after")
        prompts = [data.prompt_of(row) for row in asked]
        answers = answer(trainer.model, setting.tokenizer, prompts, setting.spec.eval, setting.device, setting.dtype, progress)
    return Measured({**scores, **measure(answers, asked)}, answers)


def report(setting: Setting, rows: data.Rows, steps: int, meter: Meter, metrics: Row) -> Row:
    """report.json: what the run came to. Tokens are those of the rows, however the engine lays them out."""
    spec = setting.spec
    tokens = round(steps * setting.tokens_per_step)
    counts = {
        "train": len(setting.train),
        "available": setting.available,
        "eval": len(data.units(setting.scored)),  # pairs are as many whether they were parted or not
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
