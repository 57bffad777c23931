"""The cost of the lab against TRL.  python -m benchmarks [--only dpo/hh,kto,sweep] [--quick]

Every figure is from a fresh process, and the sides take turns. The table shows medians of paired ratios with
their range, results.json every raw figure. The exit code is 1 where the two sides did not compute the same,
because such a time means nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from . import costs, generation, grid, plot, scale, startup, sweep, tokens
from .cases import BATCH, CASES, PEERS
from .machine import is_bf16_faster
from .results import Results, incomparable_pieces
from .table import print_tables

OTHER_PIECES = ("tokens", "scale", "startup", "sweep", "grid", "generation")
OUT = Path(__file__).with_name("results.json")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    assert __doc__
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        default="",
        help=f"pieces, by commas: {', '.join([*CASES, *OTHER_PIECES])}; dpo means dpo/hh and dpo/dpo_en",
    )
    parser.add_argument(
        "--rows",
        type=int,
        help=f"rows that a case trains on, a multiple of {BATCH} (default 16; with --quick 8)",
    )
    parser.add_argument(
        "--repeats", type=int, help="rounds of every side (default 3; of sweep and grid 1; with --quick 1)"
    )
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a sweep's cell (default 2)")
    parser.add_argument(
        "--against",
        default=",".join(PEERS),
        help="TRL tuned by hand, as shipped, or both (default: tuned,shipped)",
    )
    parser.add_argument("--model", default="embedded", help="embedded (135M) or tiny (default: embedded)")
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="use the embedded rows, even where ../shared/data has others",
    )
    parser.add_argument(
        "--lab",
        default="",
        help="overrides of the lab's runs, such as model.dtype=auto; TRL is tuned to its dtype",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the fewest rows and rounds, TRL in float32 untuned: a test of the harness",
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="the file to write or to add to; the plot is written beside it"
    )
    options = parser.parse_args(argv)
    options.pieces = select_pieces(options.only)
    options.peers = tuple(options.against.split(","))
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"--against {', '.join(unknown)}: give tuned, shipped or both")
    return options


def select_pieces(only: str) -> list[str]:
    """The pieces that `--only` names, in the order of CASES and OTHER_PIECES."""
    names = [*CASES, *OTHER_PIECES]
    selected = {word.strip() for word in only.split(",") if word.strip()}
    known = {*names, *(name.partition("/")[0] for name in names)}
    if unknown := selected - known:
        raise SystemExit(f"--only {', '.join(unknown)}: no such piece; choose from {', '.join(names)}")
    return [name for name in names if not selected or selected & {name, name.partition("/")[0]}]


def main() -> int:
    """Measure, write and show; returns 1 where a comparison failed."""
    options, console = parse_arguments(), Console(width=None if sys.stdout.isatty() else 140)
    notify = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    results = Results(options.out)
    for name, figures in measure_pieces(
        options, is_bf16_faster(results.content["machine"]["gemm_gflops"]), notify
    ):
        results.add(name, figures)
    print_tables(results.pieces, console)
    plot.draw(results.pieces, options.out.with_suffix(".png"))
    console.print(f"{options.out}", highlight=False, soft_wrap=True)
    incomparable = [
        name for name in incomparable_pieces(results.pieces) if name.partition(" ")[0] in options.pieces
    ]
    for name in incomparable:
        console.print(
            f"[red]{name}: NOT COMPARABLE[/], the two sides did not compute the same: "
            f"see `check` in {options.out}",
            soft_wrap=True,
        )
    return 1 if incomparable else 0


def measure_pieces(options: argparse.Namespace, bf16: bool, notify: costs.Notify) -> Any:
    """Yield (name, figures) of every selected piece. `bf16`: whether bfloat16 is faster here."""
    rows, repeats = (
        options.rows or (BATCH if options.quick else 2 * BATCH),
        options.repeats or (1 if options.quick else 3),
    )
    long_repeats = options.repeats or 1  # rounds of the sweep and the grid
    model, peers, lab = options.model, options.peers, options.lab.split()
    cases = [
        replace(CASES[name], **({"file": ""} if options.embedded else {}))
        for name in options.pieces
        if name in CASES
    ]
    for figures in costs.all_cases(
        cases,
        model=model,
        rows=rows,
        repeats=repeats,
        peers=peers,
        lab=lab,
        quick=options.quick,
        notify=notify,
    ):
        yield " ".join([figures["case"], *lab]), figures
    if "tokens" in options.pieces:
        yield (
            "tokens",
            tokens.measure(model=model, rows=100 if options.quick else 1000, repeats=repeats, notify=notify),
        )
    if "scale" in options.pieces:
        yield "scale", scale.measure(model=model, rows=2000 if options.quick else 1_000_000, notify=notify)
    if "generation" in options.pieces:
        figures = generation.measure(model=model, repeats=repeats, quick=options.quick, notify=notify)
        yield "generation", figures
    if "startup" in options.pieces:
        yield "startup", startup.measure(repeats=repeats, notify=notify)
    if "sweep" in options.pieces:
        figures = sweep.measure(
            model=model,
            steps=options.steps,
            repeats=long_repeats,
            peers=peers,
            lab=lab,
            bf16=bf16,
            notify=notify,
        )
        yield " ".join(["sweep", *lab]), figures
    if "grid" in options.pieces:
        yield (
            " ".join(["grid", *lab]),
            grid.measure(model=model, repeats=long_repeats, lab=lab, quick=options.quick, notify=notify),
        )


if __name__ == "__main__":
    sys.exit(main())
