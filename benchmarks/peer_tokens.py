"""The TRL side of tokenization and of start-up: TRL's own preparation of rows of messages, and the way to its trainer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .cases import MAX_LENGTH, Job


def tokens(job: Job) -> dict[str, Any]:
    """Seconds of `_prepare_dataset` on the rows of `job.feed`, and the token rows. As TRL is shipped: in this process, row by row."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(job.weights)
    rows = Dataset.from_list(json.loads(Path(job.feed).read_text())["rows"])
    where = {"output_dir": job.folder, "report_to": [], "use_cpu": True, "max_length": MAX_LENGTH}
    stub: Any = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=None, completion_only_loss=False
    )  # what it reads of its trainer
    tokenizer("warm")
    wall, cpu = time.perf_counter(), time.process_time()
    if job.method == "sft":
        found = SFTTrainer._prepare_dataset(stub, rows, tokenizer, SFTConfig(**where), False, None, "train")
    else:
        found = DPOTrainer._prepare_dataset(stub, rows, tokenizer, DPOConfig(**where), "train")
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    kept = [
        {key: value for key, value in row.items() if key.endswith("_ids") or key == "labels"}
        for row in found.to_list()
    ]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "asked": len(rows), "rows": kept}


def ready(job: Job) -> dict[str, float]:
    """CPU and wall seconds of this process up to a trainer that could train, without loading the model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = Dataset.from_list(json.loads(Path(job.feed).read_text())["rows"])
    tokenizer = AutoTokenizer.from_pretrained(job.weights)
    wall, cpu = time.time(), time.process_time()
    model, reference = (AutoModelForCausalLM.from_pretrained(job.weights) for _ in range(2))
    load_wall, load_cpu = time.time() - wall, time.process_time() - cpu
    config = DPOConfig(output_dir=job.folder, report_to=[], use_cpu=True, max_steps=job.steps)
    DPOTrainer(model=model, ref_model=reference, args=config, train_dataset=rows, processing_class=tokenizer)
    return {"seconds": time.time() - job.started - load_wall, "cpu_seconds": time.process_time() - load_cpu}
