"""How the cost of a DPO step goes with the shape of the rows: prompt length against answer length, and rows per step.

Token rows of exact lengths, cut from the text of the alpaca rows; one step each, its reference pass included, the lab as it comes beside
TRL tuned by hand (in the dtype that the lab found to be the faster one here), in turn, each point and side in a fresh process.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from . import check
from .cases import CASES, TUNED, Job
from .costs import Result, Say, ratios, weights, write_feed
from .process import scratch, work

PROMPTS, ANSWERS = (64, 256, 512, 1024), (64, 128, 256, 512)
ROWS = 2  # of a step in the grid
BATCHES, LENGTH = (1, 2, 4, 8, 16), 128  # rows of a step; prompt and answer length
QUICK: dict[str, Any] = {"prompts": (64, 256), "answers": (64,), "batches": (1, 4)}


def measure(*, model: str, repeats: int, lab: list[str], quick: bool, say: Say) -> Result:
    """Both curves."""
    prompts, answers, batches = QUICK.values() if quick else (PROMPTS, ANSWERS, BATCHES)
    lengths = [(prompt, answer, ROWS) for prompt, answer in product(prompts, answers)]
    rows = [(LENGTH, LENGTH, count) for count in batches]
    with weights(model) as where, scratch() as folder:
        text = _text(model)
        common = Job(
            "trl.train", model=model, weights=where, peer=TUNED, feed=str(folder / "feed.json"), overrides=lab
        )
        found = [_point(point, text, common, repeats, say) for point in lengths + rows]
    return {
        "model": model,
        "lab": lab,
        "comparable": all(point["comparable"] for point in found),
        "lengths": found[: len(lengths)],
        "batches": found[len(lengths) :],
    }


def _text(model: str) -> list[int]:
    """Token ids of real text on end."""
    case = CASES["sft/alpaca"]
    rows = work(Job("lab.tokens", model=model, method="sft", data=case.data, rows=500))["rows"]
    return [token for row in rows for token in row["input_ids"]]


def pairs(text: list[int], prompt: int, answer: int, count: int) -> list[dict[str, list[int]]]:
    """Rows of exactly these lengths, cut from the text one after the other, and from its start again where it ends."""
    each = prompt + 2 * answer
    laps = text * (1 + count * each // len(text))
    rows = [laps[place * each : (place + 1) * each] for place in range(count)]
    ends = prompt + answer
    return [
        {"prompt_ids": row[:prompt], "chosen_ids": row[prompt:ends], "rejected_ids": row[ends:]}
        for row in rows
    ]


def _point(point: tuple[int, int, int], text: list[int], common: Job, repeats: int, say: Say) -> Result:
    prompt, answer, count = point
    write_feed(pairs(text, prompt, answer, count), Path(common.feed))
    common = replace(common, rows=count, batch=count, micro=count)
    ours, theirs = [], []
    for _ in range(repeats):
        say(f"grid: prompt {prompt}, answers {answer}, {count} rows")
        ours.append(
            work(
                replace(
                    common, work="lab.train", data=["data=embedded", f"data.max_length={prompt + answer}"]
                )
            )
        )
        settings = {"bf16": "bfloat16" in ours[-1]["notes"]["dtype"], "max_length": prompt + answer}
        theirs.append(work(replace(common, settings=settings)))
    agrees = check.timed("dpo", ours[0], theirs[0])
    return {
        "prompt": prompt,
        "answer": answer,
        "rows": count,
        "comparable": all(one["holds"] for one in agrees),
        "check": agrees,
        "seconds": {"lab": [run["seconds"] for run in ours], "trl": [run["seconds"] for run in theirs]},
        "peak_gb": {"lab": [run["peak_gb"] for run in ours], "trl": [run["peak_gb"] for run in theirs]},
        "ratios": ratios(ours, theirs),
    }
