"""What tokenization costs: rows per CPU second of the lab and of TRL's own `_prepare_dataset`, both on the same rows of messages.

Cold on both sides, and the lab's second run, which finds its tokens on the disk. TRL's own cache would serve a second run with the same
settings too, but not one that changes any of them, so none is set up for it. Reading and converting the file is not measured.
"""

from __future__ import annotations

import json
from typing import Any

from .cases import CASES, Case, Job
from .costs import Result, Say, spread, weights
from .process import scratch, work

MEASURED = ("dpo/hh", "sft/alpaca")


def measure(*, model: str, rows: int, repeats: int, say: Say) -> list[Result]:
    """Both kinds of rows."""
    with weights(model) as where:
        return [_case(CASES[name], model, where, rows, repeats, say) for name in MEASURED]


def _case(case: Case, model: str, where: str, rows: int, repeats: int, say: Say) -> Result:
    ours = Job("lab.tokens", model=model, method=case.method, data=case.data, rows=rows)
    cold, again, peer = [], [], []
    with scratch() as folder:
        feed = folder / "messages.json"
        feed.write_text(
            json.dumps(work(Job("lab.messages", model=model, method=case.method, data=case.data, rows=rows)))
        )
        theirs = Job("trl.tokens", model=model, method=case.method, weights=where, feed=str(feed))
        for number in range(repeats):
            say(f"tokens {case.name}, {number + 1} of {repeats}")
            with scratch() as kept:
                cold.append(work(ours, cache=kept / "cache"))
                again.append(work(ours, cache=kept / "cache"))
            peer.append(work(theirs))
    return {
        "case": case.name,
        "data": case.file if case.path else "embedded",
        "rows": cold[0]["asked"],
        "same_tokens": share_of_same(cold[0]["rows"], peer[0]["rows"]),
        "cpu_seconds": {
            side: [run["cpu_seconds"] for run in runs]
            for side, runs in (("lab", cold), ("again", again), ("trl", peer))
        },
        "seconds": {
            side: [run["seconds"] for run in runs]
            for side, runs in (("lab", cold), ("again", again), ("trl", peer))
        },
        "ratios": {
            "cpu_seconds": spread(
                [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(cold, peer, strict=True)]
            ),
            "seconds": spread([b["seconds"] / a["seconds"] for a, b in zip(cold, peer, strict=True)]),
        },
    }


def share_of_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Of all rows, those whose ids agree as far as the lab's go: TRL trains on the template's newline behind the stop token as well.

    Lists that TRL leaves longer than max_length, to cut them in its collator, agree up to the cut.
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
