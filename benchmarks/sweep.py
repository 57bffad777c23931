"""What a sweep costs: dpo, kto, ipo x beta 0.01, 0.1 by the lab's own command line, beside six scripts of TRL.

Whole processes, everything included: imports, reading, tokenizing, the reference, training, the final model on the disk. The lab starts
with a cold cache: no tokens, no reference log-probabilities. Both sides read the same messages; each tokenizes and orders them its own way,
so the losses are compared only at the first step, where policy and reference are equal: log 2, 1/2 and 1/(4 beta^2) on both sides. That
the work per row is the same work is what costs.py checks. Nothing is extrapolated: the figures are of as many steps as are stated.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from .cases import BATCH, CASES, MAX_LENGTH, TUNED, Job
from .costs import Result, Say, spread, weights
from .process import run, scratch, work

METHODS, BETAS = ("dpo", "kto", "ipo"), (0.01, 0.1)
CELLS = list(product(METHODS, BETAS))
RATE = 1e-6
CASE = CASES["dpo/hh"]


def measure(
    *, model: str, steps: int, repeats: int, peers: tuple[str, ...], lab: list[str], bf16: bool, say: Say
) -> Result:
    """`repeats` rounds of the lab's sweep (`lab`: its overrides) and of TRL's six runs in each way. `bf16`: whether it is faster here."""
    with weights(model) as where, scratch() as folder:
        files = _files(folder, model, steps * BATCH)
        ours: list[Result] = []
        trl: dict[str, list[Result]] = {peer: [] for peer in peers}
        for number in range(repeats):
            say(f"sweep: lab, {number + 1} of {repeats}")
            ours.append(_lab(files, model, steps, lab))
            for peer in peers:
                trl[peer].append(_trl(files, where, steps, peer, bf16, lambda what: say(f"sweep: {what}")))
    checks = [_agrees(ours[0]["losses"], trl[peer][0]["losses"]) for peer in peers]
    return {
        "cells": [f"{method} beta={beta}" for method, beta in CELLS],
        "data": CASE.file if CASE.path else "embedded",
        "model": model,
        "lab": lab,
        "steps": steps,
        "rows_per_cell": steps * BATCH,
        "bf16": bf16,
        "comparable": all(checks),
        "sides": {"lab": ours, **trl},
        "ratios": {
            peer: {
                key: spread([b[key] / a[key] for a, b in zip(ours, runs, strict=True)])
                for key in ("seconds", "cpu_seconds")
            }
            for peer, runs in trl.items()
        },
    }


def _files(folder: Path, model: str, rows: int) -> dict[str, Path]:
    """The sweep's rows for the lab, one held-out row, and the same rows for TRL as each of the lab's cells would take them."""
    asked = Job("lab.messages", model=model, data=CASE.data, rows=rows + 1)
    *pairs, heldout = work(asked)["rows"]
    files = {name: folder / f"{name}.jsonl" for name in ("pairs", "heldout", "singles")}
    _write(files["pairs"], pairs)
    _write(files["heldout"], [heldout])
    data = [f"data.path={files['pairs']}", f"data.eval_path={files['heldout']}"]
    singles = work(Job("lab.messages", model=model, method="kto", data=["data=local", *data], rows=rows))[
        "rows"
    ]
    _write(files["singles"], singles)
    return files


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _lab(files: dict[str, Path], model: str, steps: int, overrides: list[str]) -> Result:
    """One call of the command line, and the first loss of each cell."""
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
                f"training.learning_rate={RATE}",
            ),
            *("training.lr_scheduler_type=constant", "training.warmup_steps=0"),
            *overrides,
            f"hydra.sweep.dir={folder / 'sweep'}",
        ]
        ended = run(command, folder)
        losses = [_losses(folder / "sweep", method, beta) for method, beta in CELLS]
    assert all(len(found) == steps for found in losses), "a cell did not run to its end"
    return {
        "seconds": ended.seconds,
        "cpu_seconds": ended.cpu_seconds,
        "peak_gb": ended.peak_gb,
        "losses": [found[0] for found in losses],
    }


def _losses(sweep: Path, method: str, beta: float) -> list[float]:
    """Of the cell whose own spec says that it is this one."""
    (cell,) = (
        path.parent
        for path in sweep.glob("*/spec.yaml")
        if _is(yaml.safe_load(path.read_text())["method"], method, beta)
    )
    return [json.loads(line)["loss"] for line in (cell / "metrics.jsonl").read_text().splitlines()]


def _is(settings: dict[str, Any], method: str, beta: float) -> bool:
    return (settings["name"], settings["beta"]) == (method, beta)


def _trl(files: dict[str, Path], where: str, steps: int, peer: str, bf16: bool, say: Say) -> Result:
    """Six scripts, one after the other."""
    cells = []
    for method, beta in CELLS:
        say(f"TRL {peer}, {method} beta={beta}")
        feed = files["singles" if method == "kto" else "pairs"]
        settings = {"beta": beta, **({"bf16": bf16} if peer == TUNED else {})}
        rows = steps * BATCH
        job = Job(
            "trl.script",
            method=method,
            weights=where,
            feed=str(feed),
            peer=peer,
            rows=rows,
            learning_rate=RATE,
            settings=settings,
        )
        cells.append(work(job))
    return {
        "seconds": sum(cell["process"]["seconds"] for cell in cells),
        "cpu_seconds": sum(cell["process"]["cpu_seconds"] for cell in cells),
        "peak_gb": max(cell["process"]["peak_gb"] for cell in cells),
        "losses": [cell["losses"][0] for cell in cells],
    }


def _agrees(ours: list[float], theirs: list[float]) -> bool:
    return all(abs(a - b) <= 1e-2 * abs(a) for a, b in zip(ours, theirs, strict=True))
