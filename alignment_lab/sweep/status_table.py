"""A sweep as a table: where each cell stands, how far it is, and why it failed; once, or until all have ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from .cell_status import CellStatus, cell_statuses
from .launchers import sbatch, slurm_queue
from .manifest import Submission, Sweep

TAIL = 65536  # bytes of metrics.jsonl that are read
COLORS = {
    "finished": "green",
    "running": "cyan",
    "queued": "dim",
    "missing": "yellow",
    "interrupted": "yellow",
    "failed": "red",
}


def status_table(sweep: Sweep, found: Mapping[str, CellStatus], *, rows: int | None = None) -> Group:
    """One row a cell, and below it why; where there are more cells than `rows`, those that run, failed or were cut off first."""
    made = Table(box=None, pad_edge=False, title_justify="left", title=summary(found))
    for name, side in (
        ("#", "right"),
        ("cell", "left"),
        ("state", "left"),
        ("step", "right"),
        ("loss", "right"),
        ("tok/s", "right"),
    ):
        made.add_column(name, justify=side, no_wrap=name != "cell", overflow="fold")  # type: ignore[arg-type]
    made.add_column("left", justify="right", no_wrap=True)
    made.add_column("node", no_wrap=True)
    order = list(enumerate(sweep.cells))
    if rows is not None and len(order) > rows:
        first = ("running", "failed", "interrupted")
        order = sorted(sorted(order, key=lambda one: found[one[1].name].state not in first)[:rows])
    for number, cell in order:
        one = found[cell.name]
        run = cell.run(sweep.path)
        facts = run_progress(run) if one.state != "queued" or (run.path / "metrics.jsonl").exists() else {}
        made.add_row(
            str(number),
            cell.name,
            f"[{COLORS[one.state]}]{one.state}[/]",
            facts.get("step", ""),
            facts.get("loss", ""),
            facts.get("speed", ""),
            facts.get("left", "") if one.state == "running" else "",
            one.job.node if one.job and one.job.alive else run.state().get("host", "") or "",
        )
    return Group(made, *reasons({number: found[cell.name].why for number, cell in order}))


def reasons(why: Mapping[int, str]) -> list[Text]:
    """`0, 2: waits for another attempt`: each reason once, with the numbers of the cells that have it."""
    numbers: dict[str, list[str]] = {}
    for number, reason in why.items():
        numbers.setdefault(reason, []).append(str(number))
    return [Text(f"{', '.join(cells)}: {reason}", style="dim") for reason, cells in numbers.items() if reason]


def summary(found: Mapping[str, CellStatus]) -> str:
    """`12 cells: 9 finished, 2 running, 1 failed`."""
    counts = {state: sum(one.state == state for one in found.values()) for state in COLORS}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{len(found)} cell{'s' if len(found) != 1 else ''}: {said}"


def other_jobs(sweep: Sweep) -> list[str]:
    """A line for each job that is no cell and has not ended well: what cells share, a canary."""
    others = [one for one in sweep.submissions if one.kind != "cells" and one.job]
    newest: dict[str, Submission] = {one.kind: one for one in others}
    jobs = slurm_queue.job_states(f"{one.job}_0" for one in newest.values())
    lines = []
    for one in newest.values():
        job = jobs.get(f"{one.job}_0")
        what = "what cells share" if one.kind == "share" else "the canary"
        if job and job.state != "COMPLETED":
            reason = (read_json(sweep.path / f".{one.kind}.json") or {}).get("error") or ""
            lines.append(
                f"{what}: job {one.job} {job.state}{f': {reason}' if reason else ''}; its log: {sbatch.job_log(sweep, f'{one.job}_0')}"
            )
    return lines


def run_progress(run: RunDirectory) -> dict[str, str]:
    """How far a run is, from the ends of its files."""
    rows = _tail(run.metrics_file)
    losses = [row for row in rows if "loss" in row]
    report: dict[str, Any] = run.report() or {}
    spec = (run.spec().get("training") or {}) if rows or report else {}
    step = max([row.get("step", 0) for row in rows], default=0)
    most = report.get("steps") or _most(spec, rows)
    found = {"step": f"{step}/{most}" if most else str(step) if rows else ""}
    if losses:
        found["loss"] = f"{losses[-1]['loss']:.4g}"
    attempt = run.state().get("training") or {}
    taken = step - attempt.get("from_step", step)
    if taken > 0:
        seconds = max(
            1.0, run.metrics_file.stat().st_mtime - datetime.fromisoformat(attempt["since"]).timestamp()
        )
        found["left"] = _duration(seconds / taken * (most - step))
        found["speed"] = f"{attempt['tokens_per_step'] * taken / seconds:,.0f}"
    if "tokens_per_second" in report:
        found["speed"] = f"{report['tokens_per_second']:,.0f}"
    return found


def _most(spec: Mapping[str, Any], rows: list[dict[str, Any]]) -> int:
    """The steps that a run will take: asked for, or by its epochs."""
    if (asked := spec.get("max_steps") or 0) > 0:
        return int(asked)
    last = next((row for row in reversed(rows) if row.get("epoch")), None)
    return round(last["step"] / last["epoch"] * float(spec.get("num_train_epochs") or 1)) if last else 0


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of a JSON Lines file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    )


def wait(sweep: Sweep, console: Console, poll: float) -> dict[str, CellStatus]:
    """Until no job of any cell waits or runs; Ctrl-C leaves them to themselves."""
    try:
        return follow(sweep, console, poll, lambda: cell_statuses(sweep))
    except KeyboardInterrupt:
        console.print(
            f"the cells go on. python -m alignment_lab.sweep status {sweep.path}",
            highlight=False,
            soft_wrap=True,
        )
        raise


def follow(
    sweep: Sweep, console: Console, poll: float, look: Callable[[], dict[str, CellStatus]]
) -> dict[str, CellStatus]:
    """Look every `poll` seconds until no cell waits or runs. A table that moves on a terminal, else the last one."""
    with Live(console=console, auto_refresh=False, transient=True) as shown:
        while True:
            found = look()
            if console.is_terminal:
                shown.update(status_table(sweep, found, rows=max(5, console.height - 6)), refresh=True)
            if not any(one.alive for one in found.values()):
                break
            time.sleep(poll)
    console.print(status_table(sweep, found))
    for line in other_jobs(sweep):
        console.print(line, highlight=False, soft_wrap=True)
    return found
