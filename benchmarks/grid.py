"""The cost of a DPO step by the shape of the rows: prompt length, answer length, and rows per step.

Token rows of exact lengths, cut from the text of the alpaca rows; one step each, reference pass included, the
lab with its defaults against TRL tuned by hand (in the dtype that the lab found to be faster here), in turn,
each point and side in a fresh process.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from . import check
from .cases import CASES, TUNED, Job
from .costs import Notify, Result, paired_ratios, transformers_model, write_feed
from .process import run_job, scratch

PROMPTS, ANSWERS = (64, 256, 512, 1024), (64, 128, 256, 512)
ROWS = 2  # of a step in the grid
BATCHES, BATCHES_LENGTH = (1, 2, 4, 8, 16), 128  # rows of a step; prompt and answer length
QUICK: dict[str, Any] = {"prompts": (64, 256), "answers": (64,), "batches": (1, 4)}


def measure(*, model: str, repeats: int, lab: list[str], quick: bool, notify: Notify) -> Result:
    """The grid of lengths, and the curve over rows per step."""
    prompts, answers, batches = QUICK.values() if quick else (PROMPTS, ANSWERS, BATCHES)
    lengths = [(prompt, answer, ROWS) for prompt, answer in product(prompts, answers)]
    rows = [(BATCHES_LENGTH, BATCHES_LENGTH, count) for count in batches]
    with transformers_model(model) as model_folder, scratch() as folder:
        text = _text_token_ids(model)
        common = Job(
            "trl.train",
            model=model,
            weights=model_folder,
            peer=TUNED,
            feed=str(folder / "feed.json"),
            overrides=lab,
        )
        points = [_measure_point(point, text, common, repeats, notify) for point in lengths + rows]
    return {
        "model": model,
        "lab": lab,
        "comparable": all(point["comparable"] for point in points),
        "lengths": points[: len(lengths)],
        "batches": points[len(lengths) :],
    }


def _text_token_ids(model: str) -> list[int]:
    """Token ids of real text, concatenated."""
    case = CASES["sft/alpaca"]
    rows = run_job(Job("lab.tokens", model=model, method="sft", data=case.data, rows=500))["rows"]
    return [token for row in rows for token in row["input_ids"]]


def make_pairs(text: list[int], prompt: int, answer: int, count: int) -> list[dict[str, list[int]]]:
    """Rows of exactly these lengths, cut from the text one after the other; at its end it starts again."""
    row_length = prompt + 2 * answer
    repeated_text = text * (1 + count * row_length // len(text))
    rows = [repeated_text[index * row_length : (index + 1) * row_length] for index in range(count)]
    first_length = prompt + answer
    return [
        {
            "prompt_ids": row[:prompt],
            "chosen_ids": row[prompt:first_length],
            "rejected_ids": row[first_length:],
        }
        for row in rows
    ]


def _measure_point(
    point: tuple[int, int, int], text: list[int], common: Job, repeats: int, notify: Notify
) -> Result:
    prompt, answer, count = point
    write_feed(make_pairs(text, prompt, answer, count), Path(common.feed))
    common = replace(common, rows=count, batch=count, micro=count)
    ours, theirs = [], []
    for _ in range(repeats):
        notify(f"grid: prompt {prompt}, answers {answer}, {count} rows")
        ours.append(
            run_job(
                replace(
                    common, work="lab.train", data=["data=embedded", f"data.max_length={prompt + answer}"]
                )
            )
        )
        settings = {"bf16": "bfloat16" in ours[-1]["notes"]["dtype"], "max_length": prompt + answer}
        theirs.append(run_job(replace(common, settings=settings)))
    checks = check.compare_timed_runs("dpo", ours[0], theirs[0])
    return {
        "prompt": prompt,
        "answer": answer,
        "rows": count,
        "comparable": all(comparison["holds"] for comparison in checks),
        "check": checks,
        "seconds": {"lab": [run["seconds"] for run in ours], "trl": [run["seconds"] for run in theirs]},
        "peak_gb": {"lab": [run["peak_gb"] for run in ours], "trl": [run["peak_gb"] for run in theirs]},
        "ratios": paired_ratios(ours, theirs),
    }
