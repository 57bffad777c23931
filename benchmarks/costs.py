"""What training costs: seconds, CPU seconds and peak memory of the lab and of TRL on the same rows, in turn, the reference pass included.

First a trial that is not counted: the lab's own run gives the rows in their order, then TRL is tuned by hand (the dtype that the lab found
to be the faster one here, and the faster of two numbers of rows per forward pass), and the losses are compared, in float32. Then `repeats`
rounds of lab, TRL tuned, TRL as shipped, each in a fresh process. Not measured here: imports, loading, tokenization, evaluation, saving.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from . import check
from .cases import BATCH, TUNED, Case, Job
from .process import Killed, scratch, work

Result = dict[str, Any]
Say = Callable[[str], None]
SMALL = (
    BATCH // 4
)  # rows per forward pass that TRL is tried with besides all of them: less padding, more passes
KEPT = ("seconds", "cpu_seconds", "before_training", "peak_gb")


@contextmanager
def weights(model: str) -> Iterator[str]:
    """A directory that TRL loads the model from."""
    yield work(Job("lab.weights", model=model))["folder"]


def measure(
    case: Case,
    *,
    model: str,
    where: str,
    rows: int,
    repeats: int,
    peers: tuple[str, ...],
    lab: list[str],
    quick: bool,
    say: Say,
) -> Result:
    """One case: the trial, the check, the rounds. `lab`: overrides that the lab is run with."""
    ours = Job("lab.train", model=model, method=case.method, data=case.data, rows=rows, overrides=lab)
    with scratch() as folder:
        say("lab, trial")
        trial = work(ours)
        bf16 = "bfloat16" in trial["notes"]["dtype"]
        common = Job("trl.train", model=model, method=case.method, weights=where, rows=len(trial["rows"]))
        theirs = replace(common, feed=_fed(trial, folder / "feed.json"))
        plain, tuned, trials = tune(replace(theirs, settings={"bf16": bf16}), trial, quick, say)
        strict = _in_float32(ours, common, folder, say) if bf16 else _strict(trial, plain, case.method)
        jobs = {
            "lab": ours,
            **{peer: tuned if peer == TUNED else replace(theirs, peer=peer) for peer in peers},
        }
        runs: dict[str, list[Result]] = {side: [] for side in jobs}
        if quick:  # the trials are the round
            runs |= {"lab": [trial], **({TUNED: [plain]} if TUNED in peers else {})}
        for number in range(repeats):
            for side, job in jobs.items():
                if len(runs[side]) > number:
                    continue
                say(f"{side}, {number + 1} of {repeats}")
                runs[side].append(work(job))
    assert all(run["rows"] == trial["rows"] for run in runs["lab"]), "the lab took other rows in another run"
    assert all(run["notes"]["dtype"] == trial["notes"]["dtype"] for run in runs["lab"]), (
        "the lab chose another dtype in another run"
    )
    pairs = {peer: list(zip(runs["lab"], runs[peer], strict=True)) for peer in peers}
    loose = {
        peer: [one for a, b in found for one in check.timed(case.method, a, b)]
        for peer, found in pairs.items()
    }
    return {
        "case": case.name,
        "method": case.method,
        "data": case.file if case.path else "embedded",
        "model": model,
        "lab": lab,
        "rows": len(trial["rows"]),
        "batch": BATCH,
        "tokens": sum(
            len(value) for row in trial["rows"] for key, value in row.items() if key.endswith("_ids")
        ),
        "comparable": all(one["holds"] for one in [*strict, *chain.from_iterable(loose.values())]),
        "check": {"float32": strict, "as timed": loose},
        "trials": trials,
        "sides": {side: _side(found) for side, found in runs.items()},
        "ratios": {peer: ratios(runs["lab"], runs[peer]) for peer in peers},
    }


def tune(job: Job, ours: Result, quick: bool, say: Say) -> tuple[Result, Job, list[Result]]:
    """TRL without waste: (the run with all rows of a step in one forward pass, the fastest job, what each trial took).

    What computes another loss in smaller passes (a mean over a pass's tokens is none over a step's) cannot be tuned so.
    """
    trials: list[tuple[Job, Result]] = []
    said: list[Result] = []
    for micro in (BATCH,) if quick else (BATCH, SMALL):
        tried = replace(job, micro=micro)
        say(f"TRL, trial: {micro} rows a pass")
        try:
            trials.append((tried, work(tried)))
            said.append({"micro": micro, "seconds": round(trials[-1][1]["seconds"], 3)})
        except Killed:
            said.append(
                {"micro": micro, "seconds": None, "killed": "this machine has not enough memory for it"}
            )
    same = [trial for trial in trials if all(one["holds"] for one in check.timed(job.method, ours, trial[1]))]
    return trials[0][1], min(same or trials, key=_seconds)[0], said


def _seconds(trial: tuple[Job, Result]) -> float:
    seconds: float = trial[1]["seconds"]
    return seconds


def _fed(found: Result, path: Path) -> str:
    """What the lab trained on, as a file for TRL: the rows in their order, and a reward model's head."""
    path.write_text(json.dumps({"rows": found["rows"], "head": found["notes"].pop("head", None)}))
    return str(path)


def _strict(ours: Result, theirs: Result, method: str) -> list[Result]:
    same_kl = "KL_completion_ids" in ours["rows"][0]
    return [one.plain() for one in check.strict(method, ours["logs"], theirs["logs"], same_kl=same_kl)]


def _in_float32(ours: Job, theirs: Job, folder: Path, say: Say) -> list[Result]:
    """The strict check where what is timed computes in bfloat16: two steps of both sides in float32."""
    say("both sides, two steps in float32 for the check")
    rows = min(ours.rows, 2 * BATCH)
    one = work(replace(ours, rows=rows, overrides=[*ours.overrides, "model.dtype=float32"]))
    other = work(
        replace(
            theirs, rows=len(one["rows"]), feed=_fed(one, folder / "check.json"), settings={"bf16": False}
        )
    )
    return _strict(one, other, ours.method)


def _side(runs: list[Result]) -> Result:
    """Every raw figure of one side, and its medians."""
    raw = {key: [round(run[key], 4) for run in runs] for key in KEPT} | {
        "others": [run["process"]["others"] for run in runs]
    }
    return {
        **raw,
        "steps": [run["steps"] for run in runs],
        "logs": runs[0]["logs"],
        "notes": runs[0]["notes"],
    } | {f"median_{key}": median(values) for key, values in raw.items()}


def ratios(ours: list[Result], theirs: list[Result]) -> Result:
    """How many times the lab's cost TRL's is, pair by pair; memory the other way round: the lab's share of TRL's."""
    paired = list(zip(ours, theirs, strict=True))
    return {
        "seconds": spread([b["seconds"] / a["seconds"] for a, b in paired]),
        "cpu_seconds": spread([b["cpu_seconds"] / a["cpu_seconds"] for a, b in paired]),
        "memory": spread([a["peak_gb"] / b["peak_gb"] for a, b in paired]),
    }


def spread(values: list[float]) -> Result:
    """The median of paired ratios, their range, and all of them."""
    return {
        "median": round(median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
        "pairs": values,
    }


def all_cases(cases: list[Case], *, model: str, say: Say, **options: Any) -> Iterator[Result]:
    """Each case as it comes about; `options` are those of `measure`."""
    with weights(model) as where:
        for case in cases:
            named = lambda what, name=case.name: say(f"{name}: {what}")  # noqa: E731
            yield measure(case, model=model, where=where, say=named, **options)


def write_feed(rows: list[Result], path: Path) -> str:
    """Token rows for both sides."""
    path.write_text(json.dumps({"rows": rows}))
    return str(path)
