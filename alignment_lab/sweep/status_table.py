"""A sweep as a table: the state, progress and failure of each cell; once, or until all have ended."""

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

TAIL_BYTES = 65536  # of metrics.jsonl that are read
STATE_COLORS = {
    "finished": "green",
    "running": "cyan",
    "queued": "dim",
    "missing": "yellow",
    "interrupted": "yellow",
    "failed": "red",
}
SHOWN_FIRST = ("running", "failed", "interrupted")  # states, where not all rows are shown
AUXILIARY_JOBS = {"prewarm": "the job that prepares what cells share", "canary": "the canary"}

MetricsRow = dict[str, Any]


def status_table(sweep: Sweep, statuses: Mapping[str, CellStatus], *, max_rows: int | None = None) -> Group:
    """One row for each cell, and the reasons below. `max_rows`: running and failed ones take precedence."""
    table = Table(box=None, pad_edge=False, title_justify="left", title=summary(statuses))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("cell", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "tok/s", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("node", no_wrap=True)
    numbered = list(enumerate(sweep.cells))
    if max_rows is not None and len(numbered) > max_rows:
        numbered.sort(key=lambda item: statuses[item[1].name].state not in SHOWN_FIRST)
        numbered = sorted(numbered[:max_rows], key=lambda item: item[0])
    for number, cell in numbered:
        row = _status_row(statuses[cell.name], cell.run_directory(sweep.path))
        table.add_row(str(number), cell.name, *row)
    return Group(table, *reason_lines({number: statuses[cell.name].reason for number, cell in numbered}))


def _status_row(status: CellStatus, run: RunDirectory) -> list[str]:
    """State, step, loss, tokens per second, time left, node."""
    progress = run_progress(run) if status.state != "queued" or run.metrics_file.exists() else {}
    return [
        f"[{STATE_COLORS[status.state]}]{status.state}[/]",
        *(progress.get(name, "") for name in ("step", "loss", "speed")),
        progress.get("left", "") if status.state == "running" else "",
        status.job.node if status.job and status.job.is_active else run.state().get("host", "") or "",
    ]


def reason_lines(reasons: Mapping[int, str]) -> list[Text]:
    """`0, 2: waiting for another attempt`: each reason once, with the numbers of its cells."""
    numbers: dict[str, list[str]] = {}
    for number, reason in reasons.items():
        numbers.setdefault(reason, []).append(str(number))
    return [Text(f"{', '.join(cells)}: {reason}", style="dim") for reason, cells in numbers.items() if reason]


def summary(statuses: Mapping[str, CellStatus]) -> str:
    """`12 cells: 9 finished, 2 running, 1 failed`."""
    states = [status.state for status in statuses.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATE_COLORS if state in states)
    return f"{len(states)} cell{'s' if len(states) != 1 else ''}: {counts}"


def auxiliary_job_lines(sweep: Sweep) -> list[str]:
    """A line for the newest prewarm job and the newest canary, where they have not ended well."""
    newest: dict[str, Submission] = {
        submission.kind: submission
        for submission in sweep.submissions
        if submission.kind != "cells" and submission.job_id
    }
    jobs = slurm_queue.query_jobs(f"{submission.job_id}_0" for submission in newest.values())
    lines = []
    for kind, submission in newest.items():
        job = jobs.get(f"{submission.job_id}_0")
        if job and job.state != "COMPLETED":
            error = (read_json(sweep.path / f".{kind}.json") or {}).get("error") or ""
            log = sbatch.job_log(sweep, f"{submission.job_id}_0")
            end = f"{job.state}{f': {error}' if error else ''}"
            lines.append(f"{AUXILIARY_JOBS[kind]}: job {submission.job_id} {end}; its log: {log}")
    return lines


def run_progress(run: RunDirectory) -> dict[str, str]:
    """step, loss, speed and left (the remaining time) of a run, formatted, from the ends of its files."""
    rows = _last_rows(run.metrics_file)
    losses = [row["loss"] for row in rows if "loss" in row]
    report: MetricsRow = run.report() or {}
    training = (run.spec().get("training") or {}) if rows or report else {}
    step = max([row.get("step", 0) for row in rows], default=0)
    total = report.get("steps") or _total_steps(training, rows)
    progress = {"step": f"{step}/{total}" if total else str(step) if rows else ""}
    if losses:
        progress["loss"] = f"{losses[-1]:.4g}"
    attempt = run.state().get("training") or {}
    steps_taken = step - attempt.get("from_step", step)
    if steps_taken > 0:
        began = datetime.fromisoformat(attempt["since"]).timestamp()
        seconds = max(1.0, run.metrics_file.stat().st_mtime - began)
        progress["left"] = _format_duration(seconds / steps_taken * (total - step))
        progress["speed"] = f"{attempt['tokens_per_step'] * steps_taken / seconds:,.0f}"
    if "tokens_per_second" in report:
        progress["speed"] = f"{report['tokens_per_second']:,.0f}"
    return progress


def _total_steps(training: Mapping[str, Any], rows: list[MetricsRow]) -> int:
    """The steps that a run will take: max_steps, or by num_train_epochs; 0 where that is not known yet."""
    max_steps = training.get("max_steps") or 0
    if max_steps > 0:
        return int(max_steps)
    last = next((row for row in reversed(rows) if row.get("epoch")), None)
    return round(last["step"] / last["epoch"] * float(training.get("num_train_epochs") or 1)) if last else 0


def _last_rows(path: Path) -> list[MetricsRow]:
    """The last rows of a JSON Lines file; a row that is cut in two is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _format_duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def wait(sweep: Sweep, console: Console, poll_seconds: float) -> dict[str, CellStatus]:
    """Follow the sweep until no cell waits or runs; Ctrl-C stops the waiting, not the cells."""
    try:
        return follow(sweep, console, poll_seconds, lambda: cell_statuses(sweep))
    except KeyboardInterrupt:
        hint = f"the cells continue. python -m alignment_lab.sweep status {sweep.path}"
        console.print(hint, highlight=False, soft_wrap=True)
        raise


def follow(
    sweep: Sweep, console: Console, poll_seconds: float, poll: Callable[[], dict[str, CellStatus]]
) -> dict[str, CellStatus]:
    """Call `poll` every `poll_seconds` until no cell is active.

    A terminal shows a live table, anything else the last one.
    """
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            statuses = poll()
            if console.is_terminal:
                max_rows = max(5, console.height - 6)
                live.update(status_table(sweep, statuses, max_rows=max_rows), refresh=True)
            if not any(status.is_active for status in statuses.values()):
                break
            time.sleep(poll_seconds)
    console.print(status_table(sweep, statuses))
    for line in auxiliary_job_lines(sweep):
        console.print(line, highlight=False, soft_wrap=True)
    return statuses
