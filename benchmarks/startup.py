"""The cost of start-up: CPU seconds of commands that do not train, and of building a trainer.

The trainer is built on the tiny model and one step of embedded rows; loading the model is excluded on both
sides.
"""

from __future__ import annotations

import json
import sys
from statistics import median

from .cases import Job
from .costs import Notify, Result, cost_ratios, transformers_model
from .process import run, run_job, scratch

COMMANDS = {
    "train.py --cfg job": [sys.executable, "train.py", "--cfg", "job"],
    "train.py --help": [sys.executable, "train.py", "--help"],
    "trl dpo --help": [sys.executable, "-c", "from trl.cli import main; main()", "dpo", "--help"],
}


def measure(*, repeats: int, notify: Notify) -> Result:
    """Commands, then both trainers in turn."""
    commands: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(repeats):
        notify(f"start-up: commands, {number + 1} of {repeats}")
        for name, command in COMMANDS.items():
            with scratch() as folder:
                commands[name].append(run(command, folder).cpu_seconds)
    ours = Job("lab.ready", model="tiny", data=["data=embedded"])
    lab, trl = [], []
    with transformers_model("tiny") as model_folder, scratch() as folder:
        feed = folder / "messages.json"
        feed.write_text(json.dumps(run_job(Job("lab.messages", model="tiny", data=["data=embedded"]))))
        theirs = Job("trl.ready", model="tiny", weights=model_folder, feed=str(feed))
        for number in range(repeats):
            notify(f"start-up: trainers, {number + 1} of {repeats}")
            lab.append(run_job(ours))
            trl.append(run_job(theirs))
    return {
        "commands_cpu_seconds": commands,
        "ready_cpu_seconds": {
            "lab": [run["cpu_seconds"] for run in lab],
            "trl": [run["cpu_seconds"] for run in trl],
        },
        "ready_seconds": {"lab": [run["seconds"] for run in lab], "trl": [run["seconds"] for run in trl]},
        "medians": {name: median(values) for name, values in commands.items()},
        "ratio": cost_ratios(lab, trl, "cpu_seconds"),
    }
