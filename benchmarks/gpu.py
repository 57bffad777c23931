"""DPO on an accelerator: the lab, packed and padded, beside TRL tuned by hand.  python -m benchmarks.gpu [--shape 1.5b,8b]

Random weights of a known shape and random tokens, with lengths spread as UltraFeedback's are: what is measured is arithmetic, memory and
the work around them, not learning. Steps are timed after the first ones; the reference pass and the trainer's making stand by themselves.
Tokens per second count both sequences of a pair, prompt included, on every side: the same rows, so the same tokens. MFU counts the
arithmetic that the layout needs (shapes.step_flops: no padding, nothing recomputed, a shared prompt once) against the device's dense
bfloat16 peak. `--device cpu --shape tiny` is a trial of the harness.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from . import check
from .cases import TUNED, Job
from .costs import Result, Say, spread, write_feed
from .machine import commit, describe
from .process import Failed, run, scratch, work

OUT = Path(__file__).with_name("results-gpu.json")
PROMPT, ANSWER, SPREAD = (
    120,
    280,
    0.8,
)  # median tokens, and the standard deviation of their logarithm (UltraFeedback: arXiv:2410.20305)
RANK = 16
STATES = 16  # bytes a trained float32 weight needs with gradient and AdamW's moments
LAYOUTS = ("packed", "padded")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    assert __doc__
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="1.5b,8b", help="tiny, 1.5b, 8b")
    parser.add_argument("--train", default="lora,full")
    parser.add_argument("--rows", type=int, default=32, help="pairs per optimizer step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument(
        "--micro", default="8,4,2", help="pairs per forward pass that TRL is tried with; the fastest is taken"
    )
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(words)


def rows(count: int, max_length: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of random tokens; lengths are lognormal, and cut so that prompt and answer fit."""
    draw = random.Random(seed)

    def some(middle: int, most: int) -> list[int]:
        length = max(4, min(most, round(draw.lognormvariate(math.log(middle), SPREAD))))
        return [draw.randrange(100, 49000) for _ in range(length)]

    found = []
    for _ in range(count):
        prompt = some(PROMPT, max_length // 2)
        chosen, rejected = (some(ANSWER, max_length - len(prompt)) for _ in range(2))
        found.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return found


def main() -> int:
    """Every shape and way of training; 1 where losses disagree."""
    asked, console = arguments(), Console(width=None if sys.stdout.isatty() else 140)
    say = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    device = _device(asked.device)
    content: dict[str, Any] = {
        "machine": {**describe(), "device": device},
        "commit": commit(),
        "command": sys.argv[1:],
        "cells": [],
    }
    for shape in asked.shape.split(","):
        for train in asked.train.split(","):
            cell = {"shape": shape, "train": train}
            if (lacking := _lacking(device, shape, train)) is not None:
                content["cells"].append(cell | {"left_out": lacking})
                say(f"{shape} {train}: {lacking}")
            else:
                content["cells"].append(cell | _cell(asked, shape, train, device, say))
            asked.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(table(content["cells"], asked))
    console.print(str(asked.out), highlight=False)
    return 0 if all(cell.get("comparable", True) for cell in content["cells"]) else 1


def _device(kind: str) -> Result:
    """Its name and memory, asked in a process of its own: this one must hold none of it."""
    if kind == "cpu":
        return {"name": "cpu", "memory_gb": None}
    code = "import json, torch; p = torch.cuda.get_device_properties(0); print(json.dumps([p.name, p.total_memory / 1e9]))"
    with scratch() as folder:
        name, memory = json.loads(run([sys.executable, "-c", code], folder, "cuda").output.splitlines()[-1])
    return {"name": name, "memory_gb": round(memory, 1)}


def _lacking(device: Result, shape: str, train: str) -> str | None:
    """Why this cannot be trained here, from the states alone."""
    from .shapes import SHAPES

    found = SHAPES[f"shape-{shape}"]
    weights = found.body + found.head * (1 if found.tied else 2)
    needed = weights * (STATES if train == "full" else 2) / 1e9
    memory = device["memory_gb"]
    return (
        f"needs {needed:.0f} GB before a token is seen, of {memory:.0f}"
        if memory and needed > 0.9 * memory
        else None
    )


def _cell(asked: argparse.Namespace, shape: str, train: str, device: Result, say: Say) -> Result:
    """All sides in turn."""
    from .lab import LAYOUTS as OVERRIDES

    count = asked.rows * (asked.steps + asked.warm)
    with scratch() as folder:
        data = rows(count, asked.max_length)
        common: dict[str, Any] = {
            "model": f"shape-{shape}",
            "feed": write_feed(data, folder / "feed.json"),
            "rows": count,
            "batch": asked.rows,
            "device": asked.device,
            "lora": RANK if train == "lora" else 0,
            "data": ["data=embedded", f"data.max_length={asked.max_length}"],
        }
        weights = work(Job("lab.weights", model="embedded"))["folder"]
        jobs = {
            f"lab {layout}": Job("lab.train", overrides=OVERRIDES[layout], **common) for layout in LAYOUTS
        }
        ordered = work(replace(jobs["lab padded"], rows=count))  # TRL is to see the rows in the lab's order
        settings = {"max_length": asked.max_length}
        theirs = Job(
            "trl.train",
            weights=weights,
            peer=TUNED,
            settings=settings,
            **common | {"feed": write_feed(ordered["rows"], folder / "order.json")},
        )
        jobs["TRL tuned"] = _tuned(theirs, asked, say)
        runs: dict[str, list[Result]] = {side: [] for side in jobs}
        for number in range(asked.repeats):
            for side, job in jobs.items():
                say(f"{shape} {train}: {side}, {number + 1} of {asked.repeats}")
                runs[side].append(work(job))
    taken = ordered["rows"][asked.warm * asked.rows :]
    sides = {
        side: figures(found, taken, asked.warm, shape, train, device["name"]) for side, found in runs.items()
    }
    agrees = {
        side: check.timed("dpo", found[0], runs["TRL tuned"][0])
        for side, found in runs.items()
        if side != "TRL tuned"
    }
    return {"micro": jobs["TRL tuned"].micro, "settings": jobs["TRL tuned"].settings, "sides": sides} | {
        "comparable": all(one["holds"] for found in agrees.values() for one in found),
        "check": agrees,
        "ratios": {side: _ratios(runs[side], runs["TRL tuned"], asked.warm) for side in agrees},
    }


def _tuned(job: Job, asked: argparse.Namespace, say: Say) -> Job:
    """The fastest of TRL's forward passes that fit; with gradient checkpointing only where none fits without."""
    for checkpointing in (False, True):
        found = []
        for micro in map(int, asked.micro.split(",")):
            tried = replace(
                job, micro=micro, settings={**job.settings, "gradient_checkpointing": checkpointing}
            )
            say(f"TRL, trial: {micro} pairs a pass{', gradient checkpointing' if checkpointing else ''}")
            try:
                found.append((_seconds(work(tried), asked.warm), tried))
            except Failed as failed:
                if "out of memory" not in str(failed).lower():
                    raise
        if found:
            return min(found, key=lambda one: one[0])[1]
    raise Failed("TRL does not fit in any way that was tried; give a smaller --micro")


def _seconds(found: Result, warm: int) -> float:
    return float(sum(found["steps"][warm:]))


def figures(
    runs: list[Result], taken: list[dict[str, list[int]]], warm: int, shape: str, train: str, device: str
) -> Result:
    """Of one side: every run's seconds, and medians of what they come to."""
    from .shapes import SHAPES, peak_tflops, step_flops

    lengths = [(len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"])) for row in taken]
    tokens = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths)
    shared = runs[0]["notes"].get("layout") == "packed"
    flops = step_flops(SHAPES[f"shape-{shape}"], lengths, shared=shared, lora=train == "lora")
    seconds = [_seconds(found, warm) for found in runs]
    middle, peak = median(seconds), peak_tflops(device)
    return {
        "seconds": seconds,
        "steps": [found["steps"] for found in runs],
        "rows_per_second": round(len(taken) / middle, 3),
        "tokens_per_second": round(tokens / middle, 1),
        "tflops": round(flops / middle / 1e12, 2),
        "mfu": round(flops / middle / 1e12 / peak, 4) if peak else None,
        "before_training": [found["before_training"] for found in runs],
        "peak_gb": [found["peak_gb"] for found in runs],
        "notes": runs[0]["notes"],
        "logs": runs[0]["logs"],
    }


def _ratios(ours: list[Result], theirs: list[Result], warm: int) -> Result:
    paired = list(zip(ours, theirs, strict=True))
    return {
        "seconds": spread([_seconds(b, warm) / _seconds(a, warm) for a, b in paired]),
        "memory": spread([a["peak_gb"] / b["peak_gb"] for a, b in paired]),
    }


def table(cells: list[Result], asked: argparse.Namespace) -> Table:
    """A line for each side."""
    found = Table(
        title=f"DPO, {asked.rows} pairs a step, {asked.steps} steps after {asked.warm}", title_justify="left"
    )
    for number, column in enumerate(
        ("model", "side", "pairs/s", "tokens/s", "TFLOP/s", "MFU", "GB", "times TRL")
    ):
        found.add_column(column, justify="right" if number > 1 else "left", no_wrap=True)
    for cell in cells:
        for side, one in cell.get("sides", {}).items():
            ratio = cell["ratios"].get(side)
            times = (
                ""
                if ratio is None
                else f"{ratio['seconds']['median']:.2f}x"
                if cell["comparable"]
                else "[red]NOT COMPARABLE[/]"
            )
            mfu = "" if one["mfu"] is None else f"{one['mfu']:.1%}"
            numbers = (
                f"{one['rows_per_second']:.2f}",
                f"{one['tokens_per_second']:.0f}",
                f"{one['tflops']:.1f}",
                mfu,
            )
            found.add_row(
                f"{cell['shape']} {cell['train']}", side, *numbers, f"{median(one['peak_gb']):.1f}", times
            )
        if "left_out" in cell:
            found.add_row(f"{cell['shape']} {cell['train']}", cell["left_out"])
    return found


if __name__ == "__main__":
    sys.exit(main())
