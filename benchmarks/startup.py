"""What start-up costs: CPU seconds of a command that answers without training, and of the way to a trainer that could train.

The trainer is built on the tiny model and one step of embedded rows; loading the model is left out on both sides.
"""

from __future__ import annotations

import json
import sys
from statistics import median

from .cases import Job
from .costs import Result, Say, spread, weights
from .process import run, scratch, work

COMMANDS = {
    "train.py --cfg job": [sys.executable, "train.py", "--cfg", "job"],
    "train.py --help": [sys.executable, "train.py", "--help"],
    "trl dpo --help": [sys.executable, "-c", "from trl.cli import main; main()", "dpo", "--help"],
}


def measure(*, repeats: int, say: Say) -> Result:
    """Commands, then both trainers in turn."""
    commands: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(repeats):
        say(f"start-up: commands, {number + 1} of {repeats}")
        for name, command in COMMANDS.items():
            with scratch() as folder:
                commands[name].append(run(command, folder).cpu_seconds)
    ours = Job("lab.ready", model="tiny", data=["data=embedded"])
    lab, trl = [], []
    with weights("tiny") as where, scratch() as folder:
        feed = folder / "messages.json"
        feed.write_text(json.dumps(work(Job("lab.messages", model="tiny", data=["data=embedded"]))))
        theirs = Job("trl.ready", model="tiny", weights=where, feed=str(feed))
        for number in range(repeats):
            say(f"start-up: trainers, {number + 1} of {repeats}")
            lab.append(work(ours))
            trl.append(work(theirs))
    return {
        "commands_cpu_seconds": commands,
        "ready_cpu_seconds": {
            "lab": [run["cpu_seconds"] for run in lab],
            "trl": [run["cpu_seconds"] for run in trl],
        },
        "ready_seconds": {"lab": [run["seconds"] for run in lab], "trl": [run["seconds"] for run in trl]},
        "medians": {name: median(values) for name, values in commands.items()},
        "ratio": spread([b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(lab, trl, strict=True)]),
    }
