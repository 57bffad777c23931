"""The figures as tables for a terminal."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from .cases import CASES, PEERS

Result = dict[str, Any]
NOT_COMPARABLE = "[red]NOT COMPARABLE[/]"
MAX_BUSY = 0.1  # processors that other processes may keep busy


def print_tables(pieces: dict[str, Any], console: Console) -> None:
    """Print a table for every kind of piece that was measured."""
    costs = [piece["figures"] for name, piece in sorted(pieces.items()) if name.partition(" ")[0] in CASES]
    if costs:
        console.print(training_table(costs))
    for name, make_table in (
        ("tokens", tokens_table),
        ("scale", scale_table),
        ("startup", startup_table),
        ("sweep", sweep_table),
        ("grid", grid_table),
        ("generation", generation_table),
    ):
        for piece_name in (
            piece_name for piece_name in sorted(pieces) if piece_name.partition(" ")[0] == name
        ):
            console.print(make_table(pieces[piece_name]["figures"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def format_ratio(ratio: Result) -> str:
    """A ratio: median [low, high]."""
    return f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def training_table(costs: list[Result]) -> Table:
    """Seconds a row; `times`: TRL's seconds over the lab's, the median of the pairs and their range."""
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
    for case in costs:
        lab = case["sides"]["lab"]
        for peer in (peer for peer in PEERS if peer in case["ratios"]):
            ratio = case["ratios"][peer]
            table.add_row(
                case["case"],
                str(case["rows"]),
                f"{lab['notes']['layout']} {_short_dtype(lab['notes']['dtype'])}",
                f"{lab['median_seconds'] / case['rows']:.3f}",
                _describe_trl(peer, case["sides"][peer]["notes"]),
                f"{case['sides'][peer]['median_seconds'] / case['rows']:.3f}",
                format_ratio(ratio["seconds"]),
                f"{ratio['cpu_seconds']['median']:.2f}x",
                f"{ratio['memory']['median']:.2f}",
                f"{_format_worst(case['check']['float32'])} {_format_worst(case['check']['as timed'][peer])}"
                if case["comparable"]
                else NOT_COMPARABLE,
            )
    caption = (
        "CPU: times in CPU seconds. memory: the lab's peak over TRL's. "
        "same loss: the worst relative difference, in float32 and as timed."
    )
    noisy = [
        case["case"]
        for case in costs
        if max(side.get("median_others", 0) for side in case["sides"].values()) > MAX_BUSY
    ]
    if noisy:
        caption += (
            f"\n[red]Other work kept the machine busy during {', '.join(noisy)}: "
            "such seconds mean little; measure again.[/]"
        )
    table.caption = caption
    return table


def _describe_trl(peer: str, notes: Result) -> str:
    return f"{peer}: {'bf16' if notes['bf16'] else 'fp32'} {notes['micro']}"


def _short_dtype(dtype: str) -> str:
    return "bf16" if "bfloat16" in dtype else "fp32"


def _format_worst(checks: list[Result]) -> str:
    return f"{max(check['worst'] for check in checks):.0e}"


def tokens_table(cases: list[Result]) -> Table:
    """Rows per CPU second."""
    table = _table("Tokenization", "rows", "lab rows/CPU s", "lab again", "TRL", "times", "same tokens")
    for case in cases:
        rates = [case["rows"] / median(case["cpu_seconds"][side]) for side in ("lab", "again", "trl")]
        table.add_row(
            f"{case['case']} {case['rows']}",
            *(f"{rate:.0f}" for rate in rates),
            format_ratio(case["ratios"]["cpu_seconds"]),
            f"{case['same_tokens']:.1%}",
        )
    return table


def scale_table(figures: Result) -> Table:
    """Stages of many rows."""
    table = _table(
        f"{figures['rows']} preference rows ({figures['file_gb']:.2f} GB), {figures['processes']} processes, "
        f"{figures['peak_gb']:.2f} GB of memory at most",
        "stage",
        "seconds",
        "rows/s",
    )
    for stage, seconds in figures["seconds"].items():
        table.add_row(stage, f"{seconds:.0f}", f"{figures['rows'] / seconds:.0f}")
    peer = figures["tokenization"]
    for side, seconds in peer["seconds"].items():
        table.add_row(f"{side}: tokenize {peer['rows']}", f"{seconds:.1f}", f"{peer['rows'] / seconds:.0f}")
    return table


def startup_table(figures: Result) -> Table:
    """CPU seconds."""
    table = _table("Start-up", "what", "CPU s")
    for name, seconds in figures["medians"].items():
        table.add_row(name, f"{seconds:.2f}")
    for side, seconds in figures["ready_cpu_seconds"].items():
        table.add_row(f"{side}: a trainer ready, model load left out", f"{median(seconds):.2f}")
    return table


def sweep_table(figures: Result) -> Table:
    """Whole processes."""
    rows = figures["rows_per_cell"] // figures["steps"]
    cells = f"{len(figures['cells'])} cells, {figures['steps']} steps of {rows} rows"
    title = f"Sweep of {cells}, all included{_describe_lab(figures)}"
    table = _table(title, "side", "seconds", "CPU s", "times")
    for side, runs in figures["sides"].items():
        ratio = format_ratio(figures["ratios"][side]["seconds"]) if side in figures["ratios"] else ""
        seconds, cpu = (median(run[key] for run in runs) for key in ("seconds", "cpu_seconds"))
        table.add_row(
            side, f"{seconds:.1f}", f"{cpu:.1f}", ratio if figures["comparable"] else NOT_COMPARABLE
        )
    return table


def _describe_lab(figures: Result) -> str:
    return f"; the lab with {' '.join(figures['lab'])}" if figures.get("lab") else ""


def grid_table(figures: Result) -> Table:
    """One step at each point."""
    table = _table(
        f"A DPO step by its shape, TRL tuned{_describe_lab(figures)}",
        "prompt",
        "answer",
        "rows",
        "lab s",
        "TRL s",
        "times",
        "memory lab/TRL",
    )
    for point in figures["lengths"] + figures["batches"]:
        table.add_row(
            *(str(point[key]) for key in ("prompt", "answer", "rows")),
            *(f"{median(point['seconds'][side]):.2f}" for side in ("lab", "trl")),
            format_ratio(point["ratios"]["seconds"]) if point["comparable"] else NOT_COMPARABLE,
            f"{point['ratios']['memory']['median']:.2f}",
        )
    return table


def generation_table(figures: Result) -> Table:
    """Tokens a second."""
    table = _table(
        f"{figures['prompts']} prompts of about {figures['prompt_tokens']} tokens, "
        f"{figures['answers']} answers of {figures['answer_tokens']} to each",
        "side",
        "tokens/s",
        "s",
        "CPU s",
        "times",
    )
    for side, runs in figures["sides"].items():
        seconds, cpu = (median(run[key] for run in runs) for key in ("seconds", "cpu_seconds"))
        ratio = format_ratio(figures["ratios"]["seconds"]) if side == "lab" else ""
        table.add_row(
            side,
            f"{figures['tokens_per_second'][side]:.0f}",
            f"{seconds:.2f}",
            f"{cpu:.2f}",
            ratio if figures["comparable"] else NOT_COMPARABLE,
        )
    differ_by = figures["checks"]["logps_differ_by"]
    table.caption = f"log-probabilities as drawn and as scored differ by {differ_by:.0e} nats at most"
    return table
