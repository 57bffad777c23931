"""make torture: every kind of fault, many times, and a table of what survived.

python tests/faults [--quick] [--only kills,damage,...]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the order of float sums depends on the number of threads
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline"}

import contents
import damage
import disk
import foreign
import harness
import kills
import nonfinite
import races
import readers
import soak
import unsavable
from harness import STEPS, TINY, Row, experiment

from alignment_lab.runtime.files import cache_directory

METHODS = ("sft", "dpo", "kto", "orpo", "reward")
EMBEDDED = [
    "model=embedded",
    "parallel.device=cpu",
    "method=dpo",
    "training.save_steps=1",
    "training.global_batch=2",
    "data.max_length=96",
    "eval=none",
]


def kill_anytime(quick: bool, scratch: Path) -> Iterator[Row]:
    """SIGKILL at any time, over methods, with all weights trained and with an adapter."""
    for method in METHODS[1:2] if quick else METHODS:
        for parallel in ("lora",) if quick else ("single", "lora"):
            spec = experiment(*TINY, *STEPS, f"method={method}", f"parallel={parallel}")
            yield from kills.campaign(
                f"SIGKILL, {method} {parallel}",
                spec,
                scratch / "run",
                3 if quick else 20,
                [signal.SIGKILL],
                seed=1,
            )


def kill_during_saves(quick: bool, scratch: Path) -> Iterator[Row]:
    """SIGKILL during saves only."""
    for parallel in ("single", "lora"):
        spec = experiment(*TINY, *STEPS, "method=dpo", f"parallel={parallel}")
        yield from kills.campaign(
            f"SIGKILL, dpo {parallel}, saves",
            spec,
            scratch / "run",
            2 if quick else 15,
            [signal.SIGKILL],
            seed=4,
            share=1,
        )


def send_handled_signals(quick: bool, scratch: Path) -> Iterator[Row]:
    """Signals after which a run saves and ends."""
    for method in METHODS[1:2] if quick else ("sft", "dpo", "kto"):
        spec = experiment(*TINY, *STEPS, f"method={method}", "training.logging_steps=1")
        yield from kills.campaign(
            f"SIGTERM, SIGUSR2, Ctrl-C, {method}",
            spec,
            scratch / "run",
            3 if quick else 30,
            kills.HANDLED_SIGNALS,
            seed=2,
        )


def hang_up(quick: bool, scratch: Path) -> Iterator[Row]:
    """SIGHUP, as when the terminal is closed."""
    spec = experiment(*TINY, *STEPS, "method=dpo", "training.logging_steps=1")
    faults = 3 if quick else 40
    yield from kills.campaign("SIGHUP, dpo", spec, scratch / "run", faults, [signal.SIGHUP], seed=5)


def close_pipes(quick: bool, scratch: Path) -> Iterator[Row]:
    """The reader of the output goes away."""
    yield from readers.campaign(
        experiment(*TINY, *STEPS, "method=dpo"), scratch / "run", 3 if quick else 40, seed=6
    )


def kill_embedded_model(quick: bool, scratch: Path) -> Iterator[Row]:
    """SIGKILL on the 135M model, whose saves take seconds."""
    yield from kills.campaign(
        "SIGKILL, 135M dpo",
        experiment(*EMBEDDED, f"training.max_steps={2 if quick else 4}"),
        scratch / "run",
        2 if quick else 20,
        [signal.SIGKILL],
        seed=3,
    )


def damage_checkpoints(quick: bool, scratch: Path) -> Iterator[Row]:
    """Damage to the newest of three checkpoints."""
    yield from damage.campaign(
        experiment(*TINY, *STEPS, "training.save_total_limit=3"), scratch / "run", every=20 if quick else 1
    )


def change_content(quick: bool, scratch: Path) -> Iterator[Row]:
    """Rows, weights, tokenizer or adapter that change under their names between attempts."""
    yield from contents.campaign(scratch, quick)


def inject_nonfinite(quick: bool, scratch: Path) -> Iterator[Row]:
    """NaN and infinity in losses, gradients and inputs."""
    yield from nonfinite.campaign(
        experiment(*TINY, *STEPS, "eval=none"), scratch / "run", (3,) if quick else (1, 2, 3, 6), quick
    )


def fill_disks(quick: bool, scratch: Path) -> Iterator[Row]:
    """Full disks."""
    if not disk.can_mount():
        print("full disks: only root can mount a small file system; skipped")
        return
    yield from disk.campaign(experiment(*TINY, *STEPS), scratch, quick)


def race_for_caches(quick: bool, scratch: Path) -> Iterator[Row]:
    """Concurrent builders of one cache."""
    builders = 4 if quick else 8
    yield from races.campaign(experiment(*TINY, *STEPS), scratch, 1 if quick else 5, builders)


def save_and_resume(quick: bool, scratch: Path) -> Iterator[Row]:
    """Many saves and resumes in one process."""
    spec = experiment(*TINY, "training.max_steps=1000", "eval=none")
    yield from soak.campaign(spec, scratch / "run", 6 if quick else 300)


def share_directories(quick: bool, scratch: Path) -> Iterator[Row]:
    """Files of somebody else's where a run goes on."""
    yield from foreign.campaign(experiment(*TINY, *STEPS), scratch / "run", quick)


def save_the_unsavable(quick: bool, scratch: Path) -> Iterator[Row]:
    """What a library refuses to save, or saves by other names."""
    yield from unsavable.campaign(scratch / "unsavable", quick=quick)


CAMPAIGNS = {
    "kills": kill_anytime,
    "saves": kill_during_saves,
    "signals": send_handled_signals,
    "hangup": hang_up,
    "pipes": close_pipes,
    "damage": damage_checkpoints,
    "content": change_content,
    "numbers": inject_nonfinite,
    "disk": fill_disks,
    "races": race_for_caches,
    "foreign": share_directories,
    "soak": save_and_resume,
    "unsavable": save_the_unsavable,
    "embedded": kill_embedded_model,
}


def main() -> int:
    """Run the selected campaigns."""
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(CAMPAIGNS), metavar=",".join(CAMPAIGNS)
    )
    arguments = parser.parse_args()
    harness.import_everything()
    if arguments.quick:  # an adapter is proved by another process, which would import everything again
        harness.verify_in_children()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="alignment_lab_faults_") as scratch:
        cache = Path(scratch) / "cache"
        cache.mkdir()
        (cache_directory() / "models").mkdir(parents=True, exist_ok=True)
        (cache / "models").symlink_to(cache_directory() / "models")
        os.environ["ALIGNMENT_LAB_CACHE"] = str(cache)
        for name in arguments.only:
            folder = Path(scratch) / name
            folder.mkdir()
            started = time.monotonic()
            for row in CAMPAIGNS[name](arguments.quick, folder):
                rows.append(row)
                print(f"{row.fault}: {row.survived} of {row.tried}", *row.lost, sep="\n  lost: ", flush=True)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return int(harness.table(rows) > 0)


if __name__ == "__main__":
    sys.exit(main())
