"""TRL's side: one training run on token rows that the lab wrote, and a whole training script.

Rows are tokenized, so that both sides train on the same tokens in the same order; `prepare_dataset` bypasses
TRL's own preparation, which is timed separately (tokens.py). Does not use the lab.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from .cases import MAX_LENGTH, MODES, REFERENCED, TUNED, Job, Row, TrainingResult
from .clock import Clock, StepTimer, import_late, peak_gb, step_logs
from .shapes import SHAPES, adapter, build

disable_progress_bars()
os.environ["TQDM_DISABLE"] = "1"


class PreparedDataset(Dataset):
    """Rows that need no preparation: only the map that stores the reference log-probabilities runs."""

    def map(self, *args: Any, **options: Any) -> Dataset:
        """Run only a map that writes a cache file."""
        return super().map(*args, **options) if "cache_file_name" in options else self

    def filter(self, *_: Any, **__: Any) -> Dataset:
        """Keep all rows."""
        return self


def prepare_dataset(job: Job, rows: list[Row]) -> Dataset:
    """The columns that a TRL trainer has after its own preparation."""
    return PreparedDataset.from_list(COLUMNS[job.method](rows, job.micro))


def _pairs(rows: list[Row], _: int) -> list[Row]:
    return [{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in rows]


def _whole_pairs(rows: list[Row], _: int) -> list[Row]:
    return [
        {f"{answer}_ids": row["prompt_ids"] + row[f"{answer}_ids"] for answer in ("chosen", "rejected")}
        for row in rows
    ]


def _texts(rows: list[Row], _: int) -> list[Row]:
    return [{key: row[key] for key in ("input_ids", "labels")} for row in rows]


def _singles(rows: list[Row], micro: int) -> list[Row]:
    """KTO's mismatched answers are those of the lab's rows; else those of the previous row of a pass, as in
    TRL.
    """
    singles = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row["completion_ids"], "label": row["label"]}
        for row in rows
    ]
    for start in range(0, len(rows), micro):
        answers = [row["completion_ids"] for row in rows[start : start + micro]]
        for row, row_given, mismatched in zip(
            singles[start:], rows[start:], [answers[-1], *answers[:-1]], strict=False
        ):
            row["KL_completion_ids"] = row_given.get("KL_completion_ids", mismatched)
    return singles


def _orpo(rows: list[Row], _: int) -> list[Row]:
    """The columns of ORPOTrainer.tokenize_row."""
    columns_of_rows = []
    for row in rows:
        prompt = row["prompt_ids"]
        columns = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name in ("chosen", "rejected"):
            answer = row[f"{name}_ids"]
            columns[f"{name}_input_ids"] = prompt + answer
            columns[f"{name}_attention_mask"] = [1] * (len(prompt) + len(answer))
            columns[f"{name}_labels"] = [-100] * len(prompt) + answer
        columns_of_rows.append(columns)
    return columns_of_rows


COLUMNS: dict[str, Callable[[list[Row], int], list[Row]]] = {
    "dpo": _pairs,
    "ipo": _pairs,
    "kto": _singles,
    "orpo": _orpo,
    "sft": _texts,
    "reward": _whole_pairs,
}
TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dpo": (DPOTrainer, DPOConfig, {}),
    "ipo": (DPOTrainer, DPOConfig, {"loss_type": ["ipo"]}),
    "kto": (KTOTrainer, KTOConfig, {}),
    "orpo": (ORPOTrainer, ORPOConfig, {}),
    "sft": (SFTTrainer, SFTConfig, {}),
    "reward": (RewardTrainer, RewardConfig, {}),
}


def make_config(job: Job) -> Any:
    """TRL's configuration: its defaults, the mode's changes, and what makes both sides do the same work."""
    _, schema, own = TRAINERS[job.method]
    mode = {
        key: value
        for key, value in MODES[job.peer].items()
        if key != "precompute_ref_log_probs" or job.method in REFERENCED
    }
    if job.device != "cpu" and job.peer == TUNED:
        mode["bf16"] = True  # accelerators support it
    fixed = {
        "output_dir": str(Path(job.folder, "trl")),
        "use_cpu": job.device == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": job.seed,
        "max_length": MAX_LENGTH,
        "max_steps": job.steps,
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": job.batch // job.micro,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
    }
    return schema(**{**fixed, **own, **mode, **job.settings})


def load_model(job: Job) -> Any:
    """The model as TRL loads it, in float32; a model of shapes.py in the usual dtype of its training."""
    if job.model in SHAPES:
        return build(
            job.model, job.device, torch.bfloat16 if job.lora and job.device != "cpu" else torch.float32
        )
    if job.method == "reward":
        return AutoModelForSequenceClassification.from_pretrained(
            job.weights, dtype=torch.float32, num_labels=1
        )
    return AutoModelForCausalLM.from_pretrained(job.weights, dtype=torch.float32)


def train(job: Job) -> TrainingResult:
    """Train on the rows of `job.feed`, in their order; loading is not timed, the reference pass is."""
    feed = json.loads(Path(job.feed).read_text())
    rows = feed["rows"][: job.rows]
    trainer_class, _, _ = TRAINERS[job.method]
    tokenizer = AutoTokenizer.from_pretrained(job.weights)
    model = load_model(job)
    if feed.get("head"):  # a reward model starts from the lab's random head
        model.score.weight.data.copy_(torch.tensor(feed["head"]))
    options: dict[str, Any] = {"peft_config": adapter(job.lora)} if job.lora else {}
    config = make_config(job)
    if job.method in REFERENCED and not config.precompute_ref_log_probs and not job.lora:
        options["ref_model"] = load_model(job)  # else the trainer loads it while the clock runs
    dataset = prepare_dataset(job, rows)
    import_late()
    clock, steps = Clock(), StepTimer()
    with clock.running():
        trainer = trainer_class(
            model=model,
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[steps],
            **options,
        )
        trainer.remove_callback(PrinterCallback)
        clock.lap()
        trainer.train()
    notes = {
        "micro": job.micro,
        "optim": str(config.optim),
        "bf16": config.bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
    }
    return TrainingResult(
        clock.seconds,
        clock.cpu_seconds,
        clock.lap_seconds,
        steps.seconds,
        step_logs(trainer),
        peak_gb(),
        [],
        notes,
    )


def run_script(job: Job) -> dict[str, Any]:
    """A TRL user's script: rows of messages from a file, tokenized by TRL, trained on, the model saved.

    It is timed from outside.
    """
    trainer_class, _, _ = TRAINERS[job.method]
    rows = Dataset.from_json(job.feed)
    model: Any = job.weights if job.method != "orpo" else load_model(job)
    trainer = trainer_class(
        model=model,
        args=make_config(job),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job.weights),
    )
    trainer.train()
    trainer.save_model()
    return {"steps": trainer.state.global_step, "losses": [entry["loss"] for entry in step_logs(trainer)]}
