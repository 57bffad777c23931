"""The lab side. Everything that knows the lab's inside is here: one training run, its rows in their order, tokens, start-up.

What it asks of the lab: `compose`, `data`, `assembly`, `models`, `method_spec(...).objective`, `Trainer`, and of a trainer its
sampler and its rows.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from rich.console import Console

from alignment_lab import data
from alignment_lab.config import Experiment, compose, to_yaml
from alignment_lab.models.device import device_and_dtype
from alignment_lab.models.loading import load_policy
from alignment_lab.models.locate import locate_model
from alignment_lab.models.tokenizer import load_tokenizer, tokenizer_digest
from alignment_lab.runtime.run_directory import RunDirectory

from .cases import Job, Measured, Row
from .shapes import SHAPES

COMMON = (
    "eval=none",
    "tracking=local",
    "training.lr_scheduler_type=constant",
    "training.warmup_steps=0",
    "training.logging_steps=1",
)
# What the engine can be told to do, for gpu.py: overrides by name. "own": as it decides.
LAYOUTS: dict[str, list[str]] = {"packed": [], "padded": ["model.attention=sdpa"]}


def experiment(job: Job) -> Experiment:
    """The experiment of this job, as the command line would compose it."""
    overrides = [
        f"method={job.method}",
        f"model={'tiny' if job.model in SHAPES else job.model}",
        *(job.data or ["data=embedded"]),
        *COMMON,
        f"training.max_steps={job.steps}",
        f"training.global_batch={job.batch}",
        f"training.learning_rate={job.learning_rate}",
        f"training.seed={job.seed}",
        f"parallel.device={job.device}",
        *job.overrides,
    ]
    compose.register_with_hydra()
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        return compose.compose_experiment(overrides)


def train(job: Job) -> Measured:
    """Train on the rows of `job.data`, or on the token rows of `job.feed`; loading and tokenizing are not timed, the reference pass is."""
    from transformers import set_seed

    from alignment_lab.actions import assembly
    from alignment_lab.checkpoints.manager import CheckpointManager
    from alignment_lab.methods import method_spec
    from alignment_lab.training import Hooks, Trainer
    from alignment_lab.training.backend import create_accelerator
    from alignment_lab.training.callbacks import MetricsLog

    from .clock import Clock, import_late, peak_gb
    from .lab_steps import LabSteps

    spec, console = experiment(job), Console(quiet=True)
    where = locate_model(spec.model)
    if job.feed:
        rows = json.loads(Path(job.feed).read_text())["rows"][: job.rows]
        tokenizer = load_tokenizer(spec.model, where)
        tokens = assembly.TokenizedData(data.Splits([], [], ""), where, tokenizer, rows, [], len(rows))
    else:
        tokens = assembly.tokenize(spec, data.load_rows(spec), where, console)
    set_seed(job.seed)
    device, dtype = device_and_dtype(spec)
    policy, dtype = _policy(job, spec, where, device, dtype)
    run = RunDirectory(Path(job.folder, "run"))
    run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
    import_late()
    clock, steps = Clock(), LabSteps()
    with clock.running():
        accelerator = create_accelerator(spec, device, dtype)
        context = assembly.build_context(spec, policy, accelerator, device, dtype, tokens, console)
        trainer = Trainer(
            context,
            method_spec(spec.method).objective(context),
            hooks=Hooks(on_start=lambda _: clock.lap()),  # the reference is known
            callbacks=[MetricsLog(run, context), steps],
            checkpoints=CheckpointManager(run, spec.run_id, 1, console.print),
        )
        head = _head(trainer)
        trainer.train()
    notes = {"dtype": str(dtype), "layout": layout(trainer), **({"head": head} if head else {})}
    seen = in_order(trainer, job)
    return Measured(
        clock.seconds,
        clock.cpu_seconds,
        clock.lap_seconds,
        steps.seconds,
        steps.logs,
        peak_gb(),
        seen,
        notes,
    )


def _policy(job: Job, spec: Experiment, where: Path, device: Any, dtype: Any) -> Any:
    """The model on its device and the dtype to compute in, as run.train makes them; a shape of ours is built where it will run."""
    import torch

    if job.model not in SHAPES:
        return load_policy(spec, where, device, dtype), dtype
    from alignment_lab.models import packed_attention

    from .shapes import adapter, build

    packed_attention.register()
    cpu = job.device == "cpu"
    found = build(
        job.model,
        job.device,
        torch.bfloat16 if job.lora and not cpu else torch.float32,
        spec.model.attention.name,
    )
    if job.lora:
        from peft import get_peft_model

        found = get_peft_model(found, adapter(job.lora))
    return found, torch.float32 if cpu else torch.bfloat16


def in_order(trainer: Any, job: Job) -> list[Row]:
    """The rows as the trainer took them, by its own sampler; one epoch at most."""
    rows = trainer.train_rows
    trainer.sampler.set_epoch(0)
    order = [place for batch in trainer.sampler for place in batch][: job.rows]
    assert -(-len(order) // job.batch) == job.steps, (
        f"{len(order)} rows for {job.steps} steps: too many were left out"
    )
    return [
        {
            key: value
            for key, value in rows[place].items()
            if key.endswith("_ids") or key in ("label", "labels")
        }
        for place in order
    ]


def _head(trainer: Any) -> list[list[float]] | None:
    """A reward model's head before training: it is random, and TRL is to start from the same one."""
    score = getattr(trainer.model, "score", None)
    return None if score is None else score.weight.detach().tolist()


def layout(trainer: Any) -> str:
    """How the engine lays rows out, in its own words where it has some."""
    return "packed" if trainer.context.engine.packed else "padded"


def weights(job: Job) -> dict[str, str]:
    """A directory with the job's model and tokenizer that plain transformers loads."""
    return {"folder": str(locate_model(experiment(job).model).resolve())}


def messages(job: Job) -> dict[str, Any]:
    """The first training rows in the lab's order, as messages."""
    columns = ("prompt", "chosen", "rejected", "messages", "completion", "label")
    rows = data.load_rows(experiment(job)).train[: job.rows]
    return {"rows": [{key: row[key] for key in columns if key in row} for row in rows]}


def tokens(job: Job) -> dict[str, Any]:
    """Seconds to tokenize the rows, cold or from the cache as the lab finds it, and the token rows."""
    from alignment_lab.methods import METHODS

    spec = experiment(job)
    tokenize = METHODS[spec.method.name].tokenize
    tokenizer = load_tokenizer(spec.model, locate_model(spec.model))
    rows = data.load_rows(spec).train[: job.rows]
    tokenizer("warm")  # both sides: the first call builds what the others use
    wall, cpu = time.perf_counter(), time.process_time()
    found, _ = data.tokenize_cached(
        tokenize, tokenizer, tokenizer_digest(tokenizer), rows, spec.data.max_length
    )
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    kept = [
        {key: value for key, value in row.items() if key.endswith("_ids") or key == "labels"} for row in found
    ]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "asked": len(rows), "rows": kept}


def ready(job: Job) -> dict[str, float]:
    """CPU and wall seconds of this process up to a trainer that could train, without loading the model."""
    from alignment_lab.actions import assembly

    spec, console = experiment(job), Console(quiet=True)
    where = locate_model(spec.model)
    tokens = assembly.tokenize(spec, data.load_rows(spec), where, console)
    wall, cpu = time.time(), time.process_time()
    device, dtype = device_and_dtype(spec)
    policy = load_policy(spec, where, device, dtype)
    load_wall, load_cpu = time.time() - wall, time.process_time() - cpu
    run = RunDirectory(Path(job.folder, "run"))
    run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
    assembly.build_trainer(spec, tokens, console, load=lambda *_: policy)
    return {"seconds": time.time() - job.started - load_wall, "cpu_seconds": time.process_time() - load_cpu}
