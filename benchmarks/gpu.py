"""DPO on an accelerator: the lab, packed and padded, against TRL tuned by hand.

python -m benchmarks.gpu [--shape 1.5b,8b]

Random weights of a known shape and random tokens, with the length distribution of UltraFeedback: measured are
arithmetic, memory and overhead, not learning. The first steps are not timed; the reference pass and building
the trainer are reported separately. Tokens per second count both sequences of a pair, prompt included, on
every side. MFU counts the FLOPs that the layout needs (shapes.step_flops: no padding, no recomputation, a
shared prompt once) against the device's dense bfloat16 peak. `--device cpu --shape tiny` tests the harness.
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
from .costs import Notify, Result, cost_ratios, summarize_ratios, write_feed
from .machine import current_commit, describe_machine
from .process import ProcessFailed, run, run_job, scratch

OUT = Path(__file__).with_name("results-gpu.json")
# median tokens, and the standard deviation of their logarithm (UltraFeedback: arXiv:2410.20305)
PROMPT_LENGTH, ANSWER_LENGTH, LENGTH_SIGMA = 120, 280, 0.8
RANK = 16
STATE_BYTES = 16  # of a trained float32 weight, its gradient and AdamW's moments
LAYOUTS = ("packed", "padded")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
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
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="of the lab: packed, padded")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(words)


def make_rows(count: int, max_length: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of random tokens; lengths are lognormal, and cut so that prompt and answer fit."""
    generator = random.Random(seed)

    def random_tokens(median_length: int, max_length: int) -> list[int]:
        length = max(
            4, min(max_length, round(generator.lognormvariate(math.log(median_length), LENGTH_SIGMA)))
        )
        return [generator.randrange(100, 49000) for _ in range(length)]

    pairs = []
    for _ in range(count):
        prompt = random_tokens(PROMPT_LENGTH, max_length // 2)
        chosen, rejected = (random_tokens(ANSWER_LENGTH, max_length - len(prompt)) for _ in range(2))
        pairs.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return pairs


def main() -> int:
    """Every shape and way of training; 1 where losses disagree."""
    options, console = parse_arguments(), Console(width=None if sys.stdout.isatty() else 140)
    notify = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    device = _device(options.device)
    content: dict[str, Any] = {
        "machine": {**describe_machine(), "device": device},
        "commit": current_commit(),
        "command": sys.argv[1:],
        "cells": [],
    }
    for shape in options.shape.split(","):
        for train in options.train.split(","):
            cell = {"shape": shape, "train": train}
            if (reason := _describe_missing_memory(device, shape, train)) is not None:
                content["cells"].append(cell | {"left_out": reason})
                notify(f"{shape} {train}: {reason}")
            else:
                content["cells"].append(cell | _measure_cell(options, shape, train, device, notify))
            options.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(table(content["cells"], options))
    console.print(str(options.out), highlight=False)
    return 0 if all(cell.get("comparable", True) for cell in content["cells"]) else 1


def _device(kind: str) -> Result:
    """Its name and memory, from another process: this one must not hold device memory."""
    if kind == "cpu":
        return {"name": "cpu", "memory_gb": None}
    code = (
        "import json, torch; p = torch.cuda.get_device_properties(0); "
        "print(json.dumps([p.name, p.total_memory / 1e9]))"
    )
    with scratch() as folder:
        name, memory = json.loads(run([sys.executable, "-c", code], folder, "cuda").output.splitlines()[-1])
    return {"name": name, "memory_gb": round(memory, 1)}


def _describe_missing_memory(device: Result, shape: str, train: str) -> str | None:
    """Why this cannot be trained here, by the memory of weights and optimizer states alone; else None."""
    from .shapes import SHAPES

    dimensions = SHAPES[f"shape-{shape}"]
    weights = dimensions.body + dimensions.head * (1 if dimensions.tied else 2)
    needed = weights * (STATE_BYTES if train == "full" else 2) / 1e9
    memory = device["memory_gb"]
    return (
        f"needs {needed:.0f} GB before a token is seen, of {memory:.0f}"
        if memory and needed > 0.9 * memory
        else None
    )


def _measure_cell(
    options: argparse.Namespace, shape: str, train: str, device: Result, notify: Notify
) -> Result:
    """All sides in turn."""
    from .lab import LAYOUTS as OVERRIDES

    count = options.rows * (options.steps + options.warm)
    with scratch() as folder:
        data = make_rows(count, options.max_length)
        common: dict[str, Any] = {
            "model": f"shape-{shape}",
            "feed": write_feed(data, folder / "feed.json"),
            "rows": count,
            "batch": options.rows,
            "device": options.device,
            "lora": RANK if train == "lora" else 0,
            "data": ["data=embedded", f"data.max_length={options.max_length}"],
        }
        weights = run_job(Job("lab.weights", model="tiny"))["folder"]
        jobs = {
            f"lab {layout}": Job("lab.train", overrides=OVERRIDES[layout], **common)
            for layout in options.layouts.split(",")
        }
        ordered = run_job(next(iter(jobs.values())))  # TRL gets them in the lab's order
        settings = {"max_length": options.max_length}
        theirs = Job(
            "trl.train",
            weights=weights,
            peer=TUNED,
            settings=settings,
            **common | {"feed": write_feed(ordered["rows"], folder / "order.json")},
        )
        jobs["TRL tuned"] = _tune_trl(theirs, options, notify)
        runs: dict[str, list[Result]] = {side: [] for side in jobs}
        for number in range(options.repeats):
            for side, job in jobs.items():
                notify(f"{shape} {train}: {side}, {number + 1} of {options.repeats}")
                runs[side].append(run_job(job))
    timed_rows = ordered["rows"][options.warm * options.rows :]
    sides = {
        side: summarize_side(side_runs, timed_rows, options.warm, shape, train, device["name"])
        for side, side_runs in runs.items()
    }
    checks = {
        side: check.compare_timed_runs("dpo", side_runs[0], runs["TRL tuned"][0])
        for side, side_runs in runs.items()
        if side != "TRL tuned"
    }
    return {"micro": jobs["TRL tuned"].micro, "settings": jobs["TRL tuned"].settings, "sides": sides} | {
        "comparable": all(comparison["holds"] for side_runs in checks.values() for comparison in side_runs),
        "check": checks,
        "ratios": {side: _ratios(runs[side], runs["TRL tuned"], options.warm) for side in checks},
    }


def _tune_trl(job: Job, options: argparse.Namespace, notify: Notify) -> Job:
    """The fastest of TRL's micro-batches that fit; gradient checkpointing only where none fits without.

    One alone is not tried.
    """
    if options.micro.isdigit():
        return replace(
            job, micro=int(options.micro), settings={**job.settings, "gradient_checkpointing": False}
        )
    for checkpointing in (False, True):
        trials = []
        for micro in map(int, options.micro.split(",")):
            candidate = replace(
                job, micro=micro, settings={**job.settings, "gradient_checkpointing": checkpointing}
            )
            notify(f"TRL, trial: {micro} pairs a pass{', gradient checkpointing' if checkpointing else ''}")
            try:
                trials.append((_timed_seconds(run_job(candidate), options.warm), candidate))
            except ProcessFailed as error:
                if "out of memory" not in str(error).lower():
                    raise
        if trials:
            return min(trials, key=lambda trial: trial[0])[1]
    raise ProcessFailed("TRL runs out of memory with every --micro; give a smaller one")


def _timed_seconds(run: Result, warm: int) -> float:
    return float(sum(run["steps"][warm:]))


def summarize_side(
    runs: list[Result], timed_rows: list[dict[str, list[int]]], warm: int, shape: str, train: str, device: str
) -> Result:
    """The figures of one side: the seconds of every run, and medians."""
    from .shapes import SHAPES, peak_tflops, step_flops

    lengths = [
        (len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"])) for row in timed_rows
    ]
    tokens = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths)
    shared = runs[0]["notes"].get("layout") == "packed"
    flops = step_flops(SHAPES[f"shape-{shape}"], lengths, shared=shared, lora=train == "lora")
    seconds = [_timed_seconds(run, warm) for run in runs]
    median_seconds, peak_flops = median(seconds), peak_tflops(device)
    return {
        "seconds": seconds,
        "steps": [run["steps"] for run in runs],
        "rows_per_second": round(len(timed_rows) / median_seconds, 3),
        "tokens_per_second": round(tokens / median_seconds, 1),
        "tflops": round(flops / median_seconds / 1e12, 2),
        "mfu": round(flops / median_seconds / 1e12 / peak_flops, 4) if peak_flops else None,
        "before_training": [run["before_training"] for run in runs],
        "peak_gb": [run["peak_gb"] for run in runs],
        "notes": runs[0]["notes"],
        "logs": runs[0]["logs"],
    }


def _ratios(ours: list[Result], theirs: list[Result], warm: int) -> Result:
    pairs = zip(ours, theirs, strict=True)
    return {
        "seconds": summarize_ratios([_timed_seconds(b, warm) / _timed_seconds(a, warm) for a, b in pairs]),
        "memory": cost_ratios(theirs, ours, "peak_gb"),
    }


def table(cells: list[Result], options: argparse.Namespace) -> Table:
    """A line for each side."""
    console_table = Table(
        title=f"DPO, {options.rows} pairs a step, {options.steps} steps after {options.warm}",
        title_justify="left",
    )
    for number, column in enumerate(
        ("model", "side", "pairs/s", "tokens/s", "TFLOP/s", "MFU", "GB", "times TRL")
    ):
        console_table.add_column(column, justify="right" if number > 1 else "left", no_wrap=True)
    for cell in cells:
        for side, summarize_side in cell.get("sides", {}).items():
            ratio = cell["ratios"].get(side)
            times = (
                ""
                if ratio is None
                else f"{ratio['seconds']['median']:.2f}x"
                if cell["comparable"]
                else "[red]NOT COMPARABLE[/]"
            )
            mfu = "" if summarize_side["mfu"] is None else f"{summarize_side['mfu']:.1%}"
            numbers = (
                f"{summarize_side['rows_per_second']:.2f}",
                f"{summarize_side['tokens_per_second']:.0f}",
                f"{summarize_side['tflops']:.1f}",
                mfu,
            )
            console_table.add_row(
                f"{cell['shape']} {cell['train']}",
                side,
                *numbers,
                f"{median(summarize_side['peak_gb']):.1f}",
                times,
            )
        if "left_out" in cell:
            console_table.add_row(f"{cell['shape']} {cell['train']}", cell["left_out"])
    return console_table


if __name__ == "__main__":
    sys.exit(main())
