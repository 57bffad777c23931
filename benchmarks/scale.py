"""A million generated preference rows through the lab: read, validated, tokenized and packed. And how fast
TRL tokenizes some of them, with as many processes.

The words are those of the embedded rows, drawn one by one, in turns about as long as hh-rlhf's.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .cases import ROOT, Job
from .costs import Notify, Result, transformers_model
from .process import THREADS, run_job, scratch

WORDS_OF = ROOT / "alignment_lab" / "data" / "embedded" / "train.jsonl"
PEER_ROWS = 20_000  # that TRL tokenizes, and the lab again
WORDS = {"prompt": (5, 60), "chosen": (10, 80), "rejected": (10, 80)}  # fewest and most of a turn
POLL_SECONDS = 0.5


def measure(*, model: str, rows: int, notify: Notify) -> Result:
    """Seconds and rows a second of each stage, peak memory of all processes, and both sides' tokenization."""
    with scratch() as folder, transformers_model(model) as model_folder:
        notify(f"scale: {rows} rows are generated")
        whole, part = folder / "rows.jsonl", folder / "some.jsonl"
        generate_rows(whole, rows)
        generate_rows(part, min(rows, PEER_ROWS))
        file_bytes = whole.stat().st_size
        notify("scale: validate, tokenize, pack")
        with peak_memory() as peak:
            figures = run_job(_lab(model, whole))
        notify("scale: the same rows in TRL")
        ours = run_job(_lab(model, part))
        feed = folder / "messages.json"
        lines = part.read_text().splitlines()
        feed.write_text(json.dumps({"rows": [json.loads(line) for line in lines]}))
        settings = {"dataset_num_proc": THREADS}
        theirs = run_job(
            Job("trl.tokens", model=model, weights=model_folder, feed=str(feed), settings=settings)
        )
    return {
        "rows": rows,
        "processes": THREADS,
        "seconds": figures["seconds"],
        "kept": figures["rows"],
        "tokens": figures["tokens"],
        "passes": figures["passes"],
        "file_gb": round(file_bytes / 1e9, 3),
        "peak_gb": round(peak[0] / 1e9, 3),
        "process": figures["process"],
        "tokenization": {
            "rows": len(lines),
            "seconds": {"lab": ours["seconds"]["tokenize"], "trl": theirs["seconds"]},
            "ratio": theirs["seconds"] / ours["seconds"]["tokenize"],
        },
    }


def _lab(model: str, file: Path) -> Job:
    return Job(
        "lab.scale",
        model=model,
        batch=64,
        data=["data=local", f"data.path={file}", "data.max_length=1024"],
        overrides=["training.max_steps=-1", "training.num_train_epochs=1"],
    )


def generate_rows(file: Path, count: int) -> None:
    """Write preference rows whose prompts all differ."""
    draw, words = random.Random(0), _words()

    def turn(column: str) -> str:
        return " ".join(draw.choices(words, k=draw.randint(*WORDS[column])))

    with file.open("w") as out:
        for number in range(count):
            row = {
                column: [{"role": role, "content": turn(column)}]
                for column, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
            }
            row["prompt"][0]["content"] += f" {number}"
            out.write(json.dumps(row) + "\n")


def _words() -> list[str]:
    return WORDS_OF.read_text().replace('"', " ").split()


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes that the processes below this one held at a time; memory that they share counts once."""
    from psutil import Process

    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            used = 0
            for process in Process().children(recursive=True):
                with suppress(Exception):  # it has ended meanwhile
                    used += process.memory_full_info().pss
            peak[0] = max(peak[0], used)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
