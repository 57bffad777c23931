"""The figures for a terminal."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from .cases import CASES, PEERS

Result = dict[str, Any]
NOT = "[red]NOT COMPARABLE[/]"
BUSY = 0.1  # processors that others may keep busy


def show(pieces: dict[str, Any], console: Console) -> None:
    """A table for every kind of piece that there is."""
    costs = [piece["figures"] for name, piece in sorted(pieces.items()) if name.partition(" ")[0] in CASES]
    if costs:
        console.print(training(costs))
    for name, draw in (("tokens", tokens), ("startup", startup), ("sweep", sweep), ("grid", grid)):
        for full in (full for full in sorted(pieces) if full.partition(" ")[0] == name):
            console.print(draw(pieces[full]["figures"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def times(found: Result) -> str:
    """A ratio: median [low, high]."""
    return f"{found['median']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"


def training(costs: list[Result]) -> Table:
    """Seconds a row; times: how many times the lab's seconds TRL takes, the median of pairs and their range."""
    table = _table(
        "Training, the reference pass included",
        "case",
        "rows",
        "lab",
        "s/row",
        "TRL",
        "s/row",
        "times",
        "CPU",
        "memory",
        "same loss",
    )
    for found in costs:
        lab = found["sides"]["lab"]
        for peer in (peer for peer in PEERS if peer in found["ratios"]):
            ratio = found["ratios"][peer]
            table.add_row(
                found["case"],
                str(found["rows"]),
                f"{lab['notes']['layout']} {_short(lab['notes']['dtype'])}",
                f"{lab['median_seconds'] / found['rows']:.3f}",
                _how(peer, found["sides"][peer]["notes"]),
                f"{found['sides'][peer]['median_seconds'] / found['rows']:.3f}",
                times(ratio["seconds"]),
                f"{ratio['cpu_seconds']['median']:.2f}x",
                f"{ratio['memory']['median']:.2f}",
                f"{_worst(found['check']['float32'])} {_worst(found['check']['as timed'][peer])}"
                if found["comparable"]
                else NOT,
            )
    said = "CPU: times in CPU seconds. memory: the lab's peak over TRL's. same loss: the worst relative difference, in float32 and as timed."
    noisy = [
        found["case"]
        for found in costs
        if max(side.get("median_others", 0) for side in found["sides"].values()) > BUSY
    ]
    if noisy:
        said += f"\n[red]Other work kept the machine busy during {', '.join(noisy)}: such seconds mean little; measure again.[/]"
    table.caption = said
    return table


def _how(peer: str, notes: Result) -> str:
    return f"{peer}: {'bf16' if notes['bf16'] else 'fp32'} {notes['micro']}"


def _short(dtype: str) -> str:
    return "bf16" if "bfloat16" in dtype else "fp32"


def _worst(checks: list[Result]) -> str:
    return f"{max(check['worst'] for check in checks):.0e}"


def tokens(found: list[Result]) -> Table:
    """Rows per CPU second."""
    table = _table("Tokenization", "rows", "lab rows/CPU s", "lab again", "TRL", "times", "same tokens")
    for case in found:
        rates = [case["rows"] / median(case["cpu_seconds"][side]) for side in ("lab", "again", "trl")]
        table.add_row(
            f"{case['case']} {case['rows']}",
            *(f"{rate:.0f}" for rate in rates),
            times(case["ratios"]["cpu_seconds"]),
            f"{case['same_tokens']:.1%}",
        )
    return table


def startup(found: Result) -> Table:
    """CPU seconds."""
    table = _table("Start-up", "what", "CPU s")
    for name, seconds in found["medians"].items():
        table.add_row(name, f"{seconds:.2f}")
    for side, seconds in found["ready_cpu_seconds"].items():
        table.add_row(f"{side}: a trainer ready, model load left out", f"{median(seconds):.2f}")
    return table


def sweep(found: Result) -> Table:
    """Whole processes."""
    rows = found["rows_per_cell"] // found["steps"]
    title = f"Sweep of {len(found['cells'])} cells, {found['steps']} steps of {rows} rows, all included{_with(found)}"
    table = _table(title, "side", "seconds", "CPU s", "times")
    for side, runs in found["sides"].items():
        said = times(found["ratios"][side]["seconds"]) if side in found["ratios"] else ""
        seconds, cpu = (median(run[key] for run in runs) for key in ("seconds", "cpu_seconds"))
        table.add_row(side, f"{seconds:.1f}", f"{cpu:.1f}", said if found["comparable"] else NOT)
    return table


def _with(found: Result) -> str:
    return f"; the lab with {' '.join(found['lab'])}" if found.get("lab") else ""


def grid(found: Result) -> Table:
    """One step at each point."""
    table = _table(
        f"A DPO step by its shape, TRL tuned{_with(found)}",
        "prompt",
        "answer",
        "rows",
        "lab s",
        "TRL s",
        "times",
        "memory lab/TRL",
    )
    for point in found["lengths"] + found["batches"]:
        table.add_row(
            *(str(point[key]) for key in ("prompt", "answer", "rows")),
            *(f"{median(point['seconds'][side]):.2f}" for side in ("lab", "trl")),
            times(point["ratios"]["seconds"]) if point["comparable"] else NOT,
            f"{point['ratios']['memory']['median']:.2f}",
        )
    return table
