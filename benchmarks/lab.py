"""The lab's side: one training run, its rows in training order, tokenization, start-up.

Only this module, lab_scale.py, lab_steps.py and shapes.py import alignment_lab beyond its cache folder: its
`compose`, `data`, `tokenized`, `assembly`, `models`, `objective_class(...)`, and `Trainer` with its sampler
and its rows.
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

from .cases import Job, Row, TrainingResult
from .shapes import SHAPES

COMMON = (
    "eval=none",
    "tracking=local",
    "training.lr_scheduler_type=constant",
    "training.warmup_steps=0",
    "training.logging_steps=1",
)
# The engine's layouts for gpu.py: overrides by name.
LAYOUTS: dict[str, list[str]] = {"packed": [], "padded": ["model.attention=sdpa"]}


def compose_experiment(job: Job) -> Experiment:
    """The experiment of this job, as the command line would compose it."""
    overrides = [
        f"method={job.method}",
        f"model={'tiny' if job.model in SHAPES else job.model}",
        # the estimate that plans the passes must know what is trained
        *(["parallel=lora", f"parallel.rank={job.lora}"] if job.lora else []),
        *COMMON,
        f"training.max_steps={job.steps}",
        f"training.global_batch={job.batch}",
        f"training.learning_rate={job.learning_rate}",
        f"training.seed={job.seed}",
        f"parallel.device={job.device}",
        *(job.data or ["data=embedded"]),
        *job.overrides,
    ]
    compose.register_with_hydra()
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        return compose.compose_experiment(overrides)


def train(job: Job) -> TrainingResult:
    """Train on the rows of `job.data`, or on the token rows of `job.feed`.

    The reference pass is timed; loading and tokenizing are not.
    """
    from transformers import set_seed

    from alignment_lab.actions import assembly, tokenized
    from alignment_lab.checkpoints.manager import CheckpointManager
    from alignment_lab.methods import objective_class
    from alignment_lab.training import Hooks, Trainer
    from alignment_lab.training.backend import create_accelerator
    from alignment_lab.training.callbacks import MetricsLog

    from .clock import Clock, import_late, peak_gb
    from .lab_steps import LabStepTimer

    spec, console = compose_experiment(job), Console(quiet=True)
    model_folder = locate_model(spec.model)
    if job.feed:
        rows = json.loads(Path(job.feed).read_text())["rows"][: job.rows]
        tokenizer = load_tokenizer(spec.model, model_folder)
        tokens = tokenized.TokenizedData(
            data.Splits([], [], ""), model_folder, tokenizer, rows, [], len(rows)
        )
    else:
        tokens = tokenized.tokenize(spec, data.load_rows(spec), model_folder, console)
    set_seed(job.seed)
    device, dtype = device_and_dtype(spec)
    policy, dtype = _load_policy(job, spec, model_folder, device, dtype)
    run = RunDirectory(Path(job.folder, "run"))
    run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
    import_late()
    clock, steps = Clock(), LabStepTimer()
    with clock.running():
        accelerator = create_accelerator(spec, device, dtype)
        context = assembly.build_context(spec, policy, accelerator, device, dtype, tokens, console)
        trainer = Trainer(
            context,
            objective_class(spec.method)(context),
            hooks=Hooks(on_start=lambda _: clock.lap()),  # after the reference pass
            callbacks=[MetricsLog(run, context), steps],
            checkpoints=CheckpointManager(run, spec.run_id, 1, console.print),
        )
        head = _reward_head(trainer)
        trainer.train()
    notes = {"dtype": str(dtype), "layout": layout_name(trainer), **({"head": head} if head else {})}
    rows_seen = rows_in_training_order(trainer, job)
    return TrainingResult(
        clock.seconds,
        clock.cpu_seconds,
        clock.lap_seconds,
        steps.seconds,
        steps.logs,
        peak_gb(),
        rows_seen,
        notes,
    )


def _load_policy(job: Job, spec: Experiment, model_folder: Path, device: Any, dtype: Any) -> Any:
    """The model on its device and the dtype to compute in, as a run loads them.

    A model of shapes.py is built on the device.
    """
    import torch

    if job.model not in SHAPES:
        return load_policy(spec, model_folder, device, dtype), dtype
    from alignment_lab.models import packed_attention

    from .shapes import adapter, build

    packed_attention.register()
    cpu = job.device == "cpu"
    model = build(
        job.model,
        job.device,
        torch.bfloat16 if job.lora and not cpu else torch.float32,
        spec.model.attention.name,
    )
    if job.lora:
        from peft import get_peft_model

        model = get_peft_model(model, adapter(job.lora))
    return model, torch.float32 if cpu else torch.bfloat16


def rows_in_training_order(trainer: Any, job: Job) -> list[Row]:
    """The rows in the order of the trainer's sampler; one epoch at most."""
    rows = trainer.train_rows
    trainer.sampler.set_epoch(0)
    order = [index for batch in trainer.sampler for index in batch][: job.rows]
    assert -(-len(order) // job.batch) == job.steps, (
        f"{len(order)} rows for {job.steps} steps: too many rows were dropped"
    )
    return [
        {
            key: value
            for key, value in rows[index].items()
            if key.endswith("_ids") or key in ("label", "labels")
        }
        for index in order
    ]


def _reward_head(trainer: Any) -> list[list[float]] | None:
    """The random head of a reward model before training, so that TRL starts from the same one."""
    score = getattr(trainer.model, "score", None)
    return None if score is None else score.weight.detach().tolist()


def layout_name(trainer: Any) -> str:
    """How the engine lays rows out: packed or padded."""
    return "packed" if trainer.context.engine.packed else "padded"


def locate_weights(job: Job) -> dict[str, str]:
    """The directory of the job's model and tokenizer, which plain transformers loads."""
    return {"folder": str(locate_model(compose_experiment(job).model).resolve())}


def load_messages(job: Job) -> dict[str, Any]:
    """The first training rows in the lab's order, as messages."""
    columns = ("prompt", "chosen", "rejected", "messages", "completion", "label")
    rows = data.load_rows(compose_experiment(job)).train[: job.rows]
    return {"rows": [{key: row[key] for key in columns if key in row} for row in rows]}


def time_tokenization(job: Job) -> dict[str, Any]:
    """Seconds to tokenize the rows, or to read them from the cache where it has them, and the token rows."""
    spec = compose_experiment(job)
    tokenize = data.TOKENIZE[spec.method.format]
    tokenizer = load_tokenizer(spec.model, locate_model(spec.model))
    rows = data.load_rows(spec).train[: job.rows]
    tokenizer("warm")  # on both sides: the first call builds state that later calls use
    wall, cpu = time.perf_counter(), time.process_time()
    token_rows = data.tokenize_cached(
        tokenize, tokenizer, tokenizer_digest(tokenizer), rows, spec.data.max_length
    ).rows
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    kept_rows = [
        {key: value for key, value in row.items() if key.endswith("_ids") or key == "labels"}
        for row in token_rows
    ]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "asked": len(rows), "rows": kept_rows}


def time_startup(job: Job) -> dict[str, float]:
    """CPU and wall seconds of this process up to a trainer that is ready to train, model loading excluded."""
    from alignment_lab.actions import assembly, tokenized

    spec, console = compose_experiment(job), Console(quiet=True)
    model_folder = locate_model(spec.model)
    tokens = tokenized.tokenize(spec, data.load_rows(spec), model_folder, console)
    wall, cpu = time.time(), time.process_time()
    device, dtype = device_and_dtype(spec)
    policy = load_policy(spec, model_folder, device, dtype)
    load_wall, load_cpu = time.time() - wall, time.process_time() - cpu
    run = RunDirectory(Path(job.folder, "run"))
    run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
    assembly.build_trainer(spec, tokens, console, load=lambda *_: policy)
    return {"seconds": time.time() - job.started - load_wall, "cpu_seconds": time.process_time() - load_cpu}
