"""What the lab costs beside TRL.  python -m benchmarks [--only dpo/hh,kto,sweep] [--quick]

Every figure is of a fresh process, the sides in turn; the table shows medians of paired ratios with their range, results.json every raw
figure. Exits with 1 where the two sides did not compute the same: such a time means nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from . import costs, grid, plot, startup, sweep, tokens
from .cases import BATCH, CASES, PEERS
from .machine import bf16_pays
from .results import Results, failed
from .table import show

OTHERS = ("tokens", "startup", "sweep", "grid")
OUT = Path(__file__).with_name("results.json")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    assert __doc__
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        default="",
        help=f"pieces, by commas: {', '.join([*CASES, *OTHERS])}; dpo means dpo/hh and dpo/dpo_en",
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
        help="the lab's own short rows, even where ../shared/data has others",
    )
    parser.add_argument(
        "--lab",
        default="",
        help="overrides that the lab trains with, such as model.dtype=auto; TRL is tuned to its dtype",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the fewest rows and rounds, TRL in float32 untuned: a trial of the harness",
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="the file to write or to add to; the plot lies beside it"
    )
    found = parser.parse_args(words)
    found.pieces = chosen(found.only)
    found.peers = tuple(found.against.split(","))
    unknown = set(found.peers) - set(PEERS)
    if unknown:
        parser.error(f"--against {', '.join(unknown)}: give tuned, shipped or both")
    return found


def chosen(only: str) -> list[str]:
    """The pieces that `--only` names, in their order here."""
    everything = [*CASES, *OTHERS]
    wanted = {word.strip() for word in only.split(",") if word.strip()}
    found = [name for name in everything if not wanted or wanted & {name, name.partition("/")[0]}]
    unknown = [
        word for word in wanted if not any(word in (name, name.partition("/")[0]) for name in everything)
    ]
    if unknown:
        raise SystemExit(f"--only {', '.join(unknown)}: no such piece; there are {', '.join(everything)}")
    return found


def main() -> int:
    """Measure, write, show; 1 where a comparison failed."""
    asked, console = arguments(), Console(width=None if sys.stdout.isatty() else 140)
    say = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    results = Results(asked.out)
    for name, figures in measured(asked, bf16_pays(results.content["machine"]["gemm_gflops"]), say):
        results.add(name, figures)
    show(results.pieces, console)
    plot.draw(results.pieces, asked.out.with_suffix(".png"))
    console.print(f"{asked.out}", highlight=False, soft_wrap=True)
    wrong = [name for name in failed(results.pieces) if name.partition(" ")[0] in asked.pieces]
    for name in wrong:
        console.print(
            f"[red]{name}: NOT COMPARABLE[/], the two sides did not compute the same: see `check` in {asked.out}",
            soft_wrap=True,
        )
    return 1 if wrong else 0


def measured(asked: argparse.Namespace, bf16: bool, say: costs.Say) -> Any:
    """(name, figures) of every piece that was asked for, as it comes about."""
    rows, repeats = (
        asked.rows or (BATCH if asked.quick else 2 * BATCH),
        asked.repeats or (1 if asked.quick else 3),
    )
    long = asked.repeats or 1  # rounds of what takes long
    model, peers, lab = asked.model, asked.peers, asked.lab.split()
    cases = [
        replace(CASES[name], **({"file": ""} if asked.embedded else {}))
        for name in asked.pieces
        if name in CASES
    ]
    for found in costs.all_cases(
        cases, model=model, rows=rows, repeats=repeats, peers=peers, lab=lab, quick=asked.quick, say=say
    ):
        yield " ".join([found["case"], *lab]), found
    if "tokens" in asked.pieces:
        yield (
            "tokens",
            tokens.measure(model=model, rows=100 if asked.quick else 1000, repeats=repeats, say=say),
        )
    if "startup" in asked.pieces:
        yield "startup", startup.measure(repeats=repeats, say=say)
    if "sweep" in asked.pieces:
        found = sweep.measure(
            model=model, steps=asked.steps, repeats=long, peers=peers, lab=lab, bf16=bf16, say=say
        )
        yield " ".join(["sweep", *lab]), found
    if "grid" in asked.pieces:
        yield (
            " ".join(["grid", *lab]),
            grid.measure(model=model, repeats=long, lab=lab, quick=asked.quick, say=say),
        )


if __name__ == "__main__":
    sys.exit(main())
