"""The cost of tokenization: rows per CPU second of the lab and of TRL's `_prepare_dataset`.

Both tokenize the same messages and start without a cache; a second run of the lab reads its tokens from disk.
TRL's cache would serve a second run with the same settings too, but not one that changes any of them, so it
is not set up. Reading and converting the file is not measured.
"""

from __future__ import annotations

import json
from typing import Any

from .cases import CASES, Case, Job
from .costs import Notify, Result, cost_ratios, transformers_model
from .process import run_job, scratch

CASE_NAMES = ("dpo/hh", "sft/alpaca")


def measure(*, model: str, rows: int, repeats: int, notify: Notify) -> list[Result]:
    """Pairs and conversations."""
    with transformers_model(model) as model_folder:
        return [_measure_case(CASES[name], model, model_folder, rows, repeats, notify) for name in CASE_NAMES]


def _measure_case(
    case: Case, model: str, model_folder: str, rows: int, repeats: int, notify: Notify
) -> Result:
    ours = Job("lab.tokens", model=model, method=case.method, data=case.data, rows=rows)
    cold, again, peer = [], [], []
    with scratch() as folder:
        feed = folder / "messages.json"
        feed.write_text(
            json.dumps(
                run_job(Job("lab.messages", model=model, method=case.method, data=case.data, rows=rows))
            )
        )
        theirs = Job("trl.tokens", model=model, method=case.method, weights=model_folder, feed=str(feed))
        for number in range(repeats):
            notify(f"tokens {case.name}, {number + 1} of {repeats}")
            with scratch() as cache_folder:
                cold.append(run_job(ours, cache=cache_folder / "cache"))
                again.append(run_job(ours, cache=cache_folder / "cache"))
            peer.append(run_job(theirs))
    return {
        "case": case.name,
        "data": case.file if case.path else "embedded",
        "rows": cold[0]["asked"],
        "same_tokens": share_of_equal_rows(cold[0]["rows"], peer[0]["rows"]),
        "cpu_seconds": {
            side: [run["cpu_seconds"] for run in runs]
            for side, runs in (("lab", cold), ("again", again), ("trl", peer))
        },
        "seconds": {
            side: [run["seconds"] for run in runs]
            for side, runs in (("lab", cold), ("again", again), ("trl", peer))
        },
        "ratios": {
            "cpu_seconds": cost_ratios(cold, peer, "cpu_seconds"),
            "seconds": cost_ratios(cold, peer, "seconds"),
        },
    }


def share_of_equal_rows(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The share of rows whose ids are equal over the length of the lab's rows.

    TRL also trains on the template's newline after the stop token. Lists that TRL leaves longer than
    max_length, to cut them in its collator, are compared up to the cut.
    """
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "input_ids")
    same = [
        all(
            theirs_row[key][: len(row[key])] == row[key]
            for key in columns
            if key in row and key in theirs_row
        )
        for row, theirs_row in zip(ours, theirs, strict=False)
    ]
    return round(sum(same) / max(len(ours), len(theirs)), 4)
