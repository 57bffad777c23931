"""The cost of training: seconds, CPU seconds and peak memory of the lab and of TRL on the same rows.

The reference pass is included; imports, loading, tokenization, evaluation and saving are not. First a trial
that is not counted: the lab's run gives the rows in training order, then TRL is tuned by hand (the dtype that
the lab found to be faster here, and the faster of two micro-batch sizes), and the losses are compared in
float32. Then `repeats` rounds of the lab, TRL tuned and TRL as shipped, in turn, each in a fresh process.
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
from .process import ProcessKilled, run_job, scratch

Result = dict[str, Any]
Notify = Callable[[str], None]
# rows per forward pass that TRL is tried with besides BATCH: less padding, more passes
SMALL_MICRO_BATCH = BATCH // 4
RAW_KEYS = ("seconds", "cpu_seconds", "before_training", "peak_gb")


@contextmanager
def transformers_model(model: str) -> Iterator[str]:
    """The directory that TRL loads the model from."""
    yield run_job(Job("lab.weights", model=model))["folder"]


def measure(
    case: Case,
    *,
    model: str,
    model_folder: str,
    rows: int,
    repeats: int,
    peers: tuple[str, ...],
    lab: list[str],
    quick: bool,
    notify: Notify,
) -> Result:
    """One case: the trial, the check, the rounds. `lab`: overrides of the lab's runs."""
    ours = Job("lab.train", model=model, method=case.method, data=case.data, rows=rows, overrides=lab)
    with scratch() as folder:
        notify("lab, trial")
        trial = run_job(ours)
        bf16 = "bfloat16" in trial["notes"]["dtype"]
        common = Job(
            "trl.train", model=model, method=case.method, weights=model_folder, rows=len(trial["rows"])
        )
        theirs = replace(common, feed=_write_feed_of(trial, folder / "feed.json"))
        plain, tuned, trials = tune_trl(replace(theirs, settings={"bf16": bf16}), trial, quick, notify)
        float32_check = (
            _run_and_check_float32(ours, common, folder, notify)
            if bf16
            else _check_float32(trial, plain, case.method)
        )
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
                notify(f"{side}, {number + 1} of {repeats}")
                runs[side].append(run_job(job))
    assert all(run["rows"] == trial["rows"] for run in runs["lab"]), (
        "the lab trained on different rows in different runs"
    )
    assert all(run["notes"]["dtype"] == trial["notes"]["dtype"] for run in runs["lab"]), (
        "the lab chose different dtypes in different runs"
    )
    pairs = {peer: list(zip(runs["lab"], runs[peer], strict=True)) for peer in peers}
    timed_checks = {
        peer: [
            comparison
            for ours_run, theirs_run in paired_runs
            for comparison in check.compare_timed_runs(case.method, ours_run, theirs_run)
        ]
        for peer, paired_runs in pairs.items()
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
        "comparable": all(
            comparison["holds"]
            for comparison in [*float32_check, *chain.from_iterable(timed_checks.values())]
        ),
        "check": {"float32": float32_check, "as timed": timed_checks},
        "trials": trials,
        "sides": {side: _summarize_side(paired_runs) for side, paired_runs in runs.items()},
        "ratios": {peer: paired_ratios(runs["lab"], runs[peer]) for peer in peers},
    }


def tune_trl(job: Job, ours: Result, quick: bool, notify: Notify) -> tuple[Result, Job, list[Result]]:
    """Tune TRL's micro-batch: (the run with all rows of a step in one pass, the fastest job, all trials).

    A smaller micro-batch that changes the loss is not used: the mean over the tokens of a pass is not the
    mean over those of a step.
    """
    trials: list[tuple[Job, Result]] = []
    trial_seconds: list[Result] = []
    for micro in (BATCH,) if quick else (BATCH, SMALL_MICRO_BATCH):
        candidate = replace(job, micro=micro)
        notify(f"TRL, trial: {micro} rows a pass")
        try:
            trials.append((candidate, run_job(candidate)))
            trial_seconds.append({"micro": micro, "seconds": round(trials[-1][1]["seconds"], 3)})
        except ProcessKilled:
            trial_seconds.append({"micro": micro, "seconds": None, "killed": "out of memory"})
    comparable = [
        trial
        for trial in trials
        if all(comparison["holds"] for comparison in check.compare_timed_runs(job.method, ours, trial[1]))
    ]
    return trials[0][1], min(comparable or trials, key=_seconds)[0], trial_seconds


def _seconds(trial: tuple[Job, Result]) -> float:
    seconds: float = trial[1]["seconds"]
    return seconds


def _write_feed_of(run: Result, path: Path) -> str:
    """Write what the lab trained on for TRL: the rows in training order, and a reward model's head."""
    path.write_text(json.dumps({"rows": run["rows"], "head": run["notes"].pop("head", None)}))
    return str(path)


def _check_float32(ours: Result, theirs: Result, method: str) -> list[Result]:
    same_kl = "KL_completion_ids" in ours["rows"][0]
    return [
        comparison.to_json()
        for comparison in check.compare_float32(method, ours["logs"], theirs["logs"], same_kl=same_kl)
    ]


def _run_and_check_float32(ours: Job, theirs: Job, folder: Path, notify: Notify) -> list[Result]:
    """The float32 check where the timed runs compute in bfloat16: two steps of both sides in float32."""
    notify("both sides, two steps in float32 for the check")
    rows = min(ours.rows, 2 * BATCH)
    ours_run = run_job(replace(ours, rows=rows, overrides=[*ours.overrides, "model.dtype=float32"]))
    theirs_run = run_job(
        replace(
            theirs,
            rows=len(ours_run["rows"]),
            feed=_write_feed_of(ours_run, folder / "check.json"),
            settings={"bf16": False},
        )
    )
    return _check_float32(ours_run, theirs_run, ours.method)


def _summarize_side(runs: list[Result]) -> Result:
    """Every raw figure of one side, and the medians."""
    raw = {key: [round(run[key], 4) for run in runs] for key in RAW_KEYS} | {
        "others": [run["process"]["others"] for run in runs]
    }
    return {
        **raw,
        "steps": [run["steps"] for run in runs],
        "logs": runs[0]["logs"],
        "notes": runs[0]["notes"],
    } | {f"median_{key}": median(values) for key, values in raw.items()}


def paired_ratios(ours: list[Result], theirs: list[Result]) -> Result:
    """TRL's seconds and CPU seconds over the lab's, and the lab's memory over TRL's, run by run."""
    return {
        "seconds": cost_ratios(ours, theirs, "seconds"),
        "cpu_seconds": cost_ratios(ours, theirs, "cpu_seconds"),
        "memory": cost_ratios(theirs, ours, "peak_gb"),
    }


def cost_ratios(ours: list[Result], theirs: list[Result], key: str) -> Result:
    """`theirs` over `ours`, run by run."""
    return summarize_ratios([b[key] / a[key] for a, b in zip(ours, theirs, strict=True)])


def summarize_ratios(values: list[float]) -> Result:
    """The median of paired ratios, their range, and all of them."""
    return {
        "median": round(median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
        "pairs": values,
    }


def all_cases(cases: list[Case], *, model: str, notify: Notify, **options: Any) -> Iterator[Result]:
    """Yield the result of each case; `options` are those of `measure`."""
    with transformers_model(model) as model_folder:
        for case in cases:
            notify_case = lambda message, name=case.name: notify(f"{name}: {message}")  # noqa: E731
            yield measure(case, model=model, model_folder=model_folder, notify=notify_case, **options)


def write_feed(rows: list[Result], path: Path) -> str:
    """Token rows for both sides."""
    path.write_text(json.dumps({"rows": rows}))
    return str(path)
