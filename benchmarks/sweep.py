"""The cost of a sweep: dpo, kto, ipo x beta 0.01, 0.1 by the lab's command line, against six scripts of TRL.

Whole processes, everything included: imports, reading, tokenizing, the reference, training, saving the final
model. The lab starts with an empty cache: no tokens, no reference log-probabilities. Both sides read the
same messages, but tokenize and order them in their own way, so the losses are compared only at the first
step, where policy and reference are equal: log 2, 1/2 and 1/(4 beta^2) on both sides. costs.py checks that
the work per row is the same. Nothing is extrapolated: the figures are of as many steps as they state.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from .cases import BATCH, CASES, MAX_LENGTH, TUNED, Job
from .costs import Notify, Result, cost_ratios, transformers_model
from .process import run, run_job, scratch

METHODS, BETAS = ("dpo", "kto", "ipo"), (0.01, 0.1)
CELLS = list(product(METHODS, BETAS))
LEARNING_RATE = 1e-6
CASE = CASES["dpo/hh"]


def measure(
    *,
    model: str,
    steps: int,
    repeats: int,
    peers: tuple[str, ...],
    lab: list[str],
    bf16: bool,
    notify: Notify,
) -> Result:
    """`repeats` rounds of the lab's sweep and of TRL's six runs in each mode.

    `lab`: overrides of the sweep. `bf16`: whether bfloat16 is faster here.
    """
    with transformers_model(model) as model_folder, scratch() as folder:
        files = _write_files(folder, model, steps * BATCH)
        lab_runs: list[Result] = []
        trl_runs: dict[str, list[Result]] = {peer: [] for peer in peers}
        for number in range(repeats):
            notify(f"sweep: lab, {number + 1} of {repeats}")
            lab_runs.append(_run_lab(files, model, steps, lab))
            for peer in peers:
                trl_runs[peer].append(
                    _run_trl(
                        files, model_folder, steps, peer, bf16, lambda message: notify(f"sweep: {message}")
                    )
                )
    checks = [_losses_agree(lab_runs[0]["losses"], trl_runs[peer][0]["losses"]) for peer in peers]
    return {
        "cells": [f"{method} beta={beta}" for method, beta in CELLS],
        "data": CASE.file if CASE.path else "embedded",
        "model": model,
        "lab": lab,
        "steps": steps,
        "rows_per_cell": steps * BATCH,
        "bf16": bf16,
        "comparable": all(checks),
        "sides": {"lab": lab_runs, **trl_runs},
        "ratios": {
            peer: {key: cost_ratios(lab_runs, runs, key) for key in ("seconds", "cpu_seconds")}
            for peer, runs in trl_runs.items()
        },
    }


def _write_files(folder: Path, model: str, rows: int) -> dict[str, Path]:
    """Files with the sweep's pairs, one held-out row, and the pairs as labeled single answers for KTO."""
    job = Job("lab.messages", model=model, data=CASE.data, rows=rows + 1)
    *pairs, heldout = run_job(job)["rows"]
    files = {name: folder / f"{name}.jsonl" for name in ("pairs", "heldout", "singles")}
    _write(files["pairs"], pairs)
    _write(files["heldout"], [heldout])
    data = [f"data.path={files['pairs']}", f"data.eval_path={files['heldout']}"]
    singles = run_job(Job("lab.messages", model=model, method="kto", data=["data=local", *data], rows=rows))[
        "rows"
    ]
    _write(files["singles"], singles)
    return files


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run_lab(files: dict[str, Path], model: str, steps: int, overrides: list[str]) -> Result:
    """Run the command line once; returns its cost and the first loss of each cell."""
    with scratch() as folder:
        command = [
            *(sys.executable, "train.py", "--multirun"),
            f"method={','.join(METHODS)}",
            f"beta={','.join(map(str, BETAS))}",
            *(
                f"model={model}",
                "data=local",
                f"data.path={files['pairs']}",
                f"data.eval_path={files['heldout']}",
            ),
            *(f"data.max_length={MAX_LENGTH}", "eval=none", "tracking=local", "parallel.device=cpu"),
            *(
                f"training.max_steps={steps}",
                f"training.global_batch={BATCH}",
                f"training.learning_rate={LEARNING_RATE}",
            ),
            *("training.lr_scheduler_type=constant", "training.warmup_steps=0"),
            *overrides,
            f"hydra.sweep.dir={folder / 'sweep'}",
        ]
        process = run(command, folder)
        losses = [_read_losses(folder / "sweep", method, beta) for method, beta in CELLS]
    assert all(len(cell_losses) == steps for cell_losses in losses), "a cell did not finish"
    return {
        "seconds": process.seconds,
        "cpu_seconds": process.cpu_seconds,
        "peak_gb": process.peak_gb,
        "losses": [cell_losses[0] for cell_losses in losses],
    }


def _read_losses(sweep: Path, method: str, beta: float) -> list[float]:
    """The losses of the cell whose spec.yaml has this method and beta."""
    (cell,) = (
        path.parent
        for path in sweep.glob("*/spec.yaml")
        if _is_cell(yaml.safe_load(path.read_text())["method"], method, beta)
    )
    return [json.loads(line)["loss"] for line in (cell / "metrics.jsonl").read_text().splitlines()]


def _is_cell(settings: dict[str, Any], method: str, beta: float) -> bool:
    return (settings["name"], settings["beta"]) == (method, beta)


def _run_trl(
    files: dict[str, Path], model_folder: str, steps: int, peer: str, bf16: bool, notify: Notify
) -> Result:
    """Six scripts, one after the other."""
    cells = []
    for method, beta in CELLS:
        notify(f"TRL {peer}, {method} beta={beta}")
        feed = files["singles" if method == "kto" else "pairs"]
        settings = {"beta": beta, **({"bf16": bf16} if peer == TUNED else {})}
        batch = 2 * BATCH if method == "kto" else BATCH  # two labeled answers of each pair
        job = Job(
            "trl.script",
            method=method,
            weights=model_folder,
            feed=str(feed),
            peer=peer,
            rows=steps * batch,
            batch=batch,
            micro=batch,
            learning_rate=LEARNING_RATE,
            settings=settings,
        )
        cells.append(run_job(job))
    return {
        "seconds": sum(cell["process"]["seconds"] for cell in cells),
        "cpu_seconds": sum(cell["process"]["cpu_seconds"] for cell in cells),
        "peak_gb": max(cell["process"]["peak_gb"] for cell in cells),
        "losses": [cell["losses"][0] for cell in cells],
    }


def _losses_agree(ours: list[float], theirs: list[float]) -> bool:
    return all(
        abs(ours_loss - theirs_loss) <= 1e-2 * abs(ours_loss)
        for ours_loss, theirs_loss in zip(ours, theirs, strict=True)
    )
