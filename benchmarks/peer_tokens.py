"""TRL's side of tokenization and start-up: its preparation of rows of messages, and building its trainer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .cases import MAX_LENGTH, Job


def time_tokenization(job: Job) -> dict[str, Any]:
    """Seconds of `_prepare_dataset` on the rows of `job.feed`, and the token rows.

    As TRL is shipped, in this process and row by row, where `job.settings` do not say otherwise.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(job.weights)
    rows = Dataset.from_list(json.loads(Path(job.feed).read_text())["rows"])
    settings = {
        "output_dir": job.folder,
        "report_to": [],
        "use_cpu": True,
        "max_length": MAX_LENGTH,
        **job.settings,
    }
    # the attributes that it reads of its trainer
    stub: Any = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=False)
    tokenizer("warm")
    wall, cpu = time.perf_counter(), time.process_time()
    if job.method == "sft":
        token_rows = SFTTrainer._prepare_dataset(
            stub, rows, tokenizer, SFTConfig(**settings), False, None, "train"
        )
    else:
        token_rows = DPOTrainer._prepare_dataset(stub, rows, tokenizer, DPOConfig(**settings), "train")
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    kept_rows = [
        {key: value for key, value in row.items() if key.endswith("_ids") or key == "labels"}
        for row in token_rows.to_list()
    ]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "asked": len(rows), "rows": kept_rows}


def time_startup(job: Job) -> dict[str, float]:
    """CPU and wall seconds of this process up to a trainer that is ready to train, model loading excluded."""
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
