"""From an experiment to transformers' Trainer: its arguments, what happens at each logged step, and the fit itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from . import checkpoint
from .artifacts import RunDirectory
from .data.tokenise import size, stop_ids
from .progress import Bar
from .spec import Device, Experiment
from .tracking import trackers

if TYPE_CHECKING:
    from rich.console import Console

    from .eval.interval import Scores


def arguments(spec: Experiment, run: RunDirectory, dtype: torch.dtype) -> dict[str, Any]:
    """Keywords for TrainingArguments or one of its heirs. Nothing that matters is left to a library's default."""
    training = spec.training
    micro = training.micro_batch or 1
    same_name = ("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "weight_decay", "max_grad_norm", "seed")
    return {
        **{name: getattr(training, name) for name in same_name},
        "output_dir": str(run.partial),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": training.global_batch // micro,
        "lr_scheduler_type": training.lr_scheduler_type.name,
        "optim": training.optim.name,
        "activation_checkpointing": training.gradient_checkpointing,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": training.logging_steps,
        "logging_nan_inf_filter": False,  # a NaN is shown, not replaced by the running mean
        "save_strategy": "steps" if training.save_steps else "no",
        "save_steps": training.save_steps or 1,
        "save_total_limit": None,  # only committed checkpoints count: checkpoint.retain
        "eval_strategy": "no",  # EvaluateEvery asks for it: our rows are no padded Dataset
        "bf16": dtype is torch.bfloat16,
        "fp16": False,
        "use_cpu": spec.parallel.device is Device.cpu,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


class GlobalBatches(Sampler[int]):
    """A seeded permutation per epoch; inside each global batch, longest rows first.

    The batches, and so the gradients, are those of the permutation: only which rows share a micro-batch changes, and with it the padding.
    """

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int) -> None:
        self.lengths, self.global_batch, self.seed, self.epoch = lengths, global_batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch, on resuming too."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, len(order), self.global_batch):
            yield from sorted(order[start : start + self.global_batch], key=lambda row: -self.lengths[row])


class LabTrainer:
    """What the lab's trainers do their own way, whichever library's Trainer they are: the order of rows, and the evaluation.

    Evaluation is `heldout_scores`: one value per held-out row, so that it has an interval.
    """

    def _get_train_sampler(self: Any, *_: Any) -> GlobalBatches:
        training = self.setting.spec.training
        return GlobalBatches([size(row) for row in self.setting.train], training.global_batch, training.seed)

    def heldout_scores(self, *, initial: bool = False) -> dict[str, Scores]:
        """Scores of the held-out rows by TRL's metric names with `eval_`; `initial` says that the weights are untouched."""
        raise NotImplementedError

    def evaluate(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Score the held-out rows, log the means."""
        metrics = {name: scores.mean for name, scores in self.heldout_scores().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class MetricsLog(TrainerCallback):
    """Appends every logged step to metrics.jsonl."""

    def __init__(self, run: RunDirectory, steps_per_epoch: float) -> None:
        self.run, self.steps_per_epoch = run, steps_per_epoch

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """One line a step, its epoch counted over all rows of the data; the Trainer's closing summary goes into report.json instead."""
        if logs and "train_runtime" not in logs:
            self.run.log({"step": state.global_step, **logs, "epoch": round(state.global_step / self.steps_per_epoch, 4)})


class CommitCheckpoint(TrainerCallback):
    """Gives a checkpoint its name once it is complete."""

    def __init__(self, run: RunDirectory, run_id: str, limit: int) -> None:
        self.run, self.run_id, self.limit = run, run_id, limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Publish what the Trainer wrote into the partial folder, then drop the oldest."""
        name = f"checkpoint-{state.global_step}"
        checkpoint.publish(self.run.partial / name, self.run.checkpoints / name, run_id=self.run_id, step=state.global_step)
        checkpoint.retain(self.run.checkpoints, self.limit)


class EvaluateEvery(TrainerCallback):
    """Asks for an evaluation every `steps` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Not at the last step: the run measures itself after training anyway."""
        if state.global_step % self.steps == 0 and state.global_step < state.max_steps:
            control.should_evaluate = True


class ShowSteps(TrainerCallback):
    """A bar of optimizer steps with the latest loss."""

    def __init__(self, console: Console) -> None:
        self.console, self.note = console, ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar."""
        self.bar = Bar("training", state.max_steps, self.console)
        self.bar.done = state.global_step
        self.bar.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar; a step's log comes after its end, so the note is that of the step before."""
        self.bar.advance(self.note)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Keep what the next move shows."""
        shown = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
        self.note = "  ".join(f"{label} {logs[name]:.3f}" for name, label in shown.items() if logs and name in logs) or self.note

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self.bar.__exit__()


def fit(trainer: Any, spec: Experiment, run: RunDirectory, console: Console) -> None:
    """Train to the end, from the newest checkpoint of this run where there is one."""
    disable_progress_bar()  # transformers' own, for every shard that it writes
    trainer.remove_callback(PrinterCallback)
    callbacks = [
        *trackers(spec, run, console),
        MetricsLog(run, trainer.setting.available / spec.training.global_batch),
        CommitCheckpoint(run, spec.run_id, spec.training.save_total_limit),
        ShowSteps(console),
    ]
    if spec.training.eval_steps:
        callbacks.append(EvaluateEvery(spec.training.eval_steps))
    for callback in callbacks:
        trainer.add_callback(callback)
    found = checkpoint.newest(run.checkpoints, spec.run_id)
    if found:
        console.print(f"resuming from {found}", highlight=False, soft_wrap=True)
    run.rewind(checkpoint.step_of(found) if found else 0)
    trainer.train(resume_from_checkpoint=str(found) if found else None)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights, tokenizer, template and generation config, as plain transformers loads them; generation ends where training taught it to."""
    model.config.use_cache = True
    model.generation_config.eos_token_id = stop_ids(tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
