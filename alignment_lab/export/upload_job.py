"""python -m alignment_lab.export.upload_job FOLDER: one upload of a run, in a process of its own.

FOLDER has job.json and the model as the run saved it. Its configs are scrubbed, its card is written, and it
is uploaded; result.json says to where, or why not. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from ..runtime.files import read_json, write_json
from ..runtime.publishing import files_in
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import terminate_with_parent
from .card import Card
from .hub import Target, check_push, upload
from .run_uploads import JOB, MODEL, RESULT
from .scrub import scrub_configs
from .write import saved_facts

NICENESS = 10  # training goes first


def main(folder: str) -> None:
    """Upload, and leave result.json: `{"url": ...}` or `{"error": ...}`."""
    terminate_with_parent()
    os.nice(NICENESS)
    try:
        result = {"url": run_job(Path(folder))}
    except UserError as error:
        result = {"error": str(error)}
    write_json(Path(folder, RESULT), result)


def run_job(folder: Path) -> str:
    """The URL of what was uploaded. Raises UserError."""
    job: dict[str, Any] = read_json(folder / JOB)
    run, model = RunDirectory(Path(job["run"])), folder / MODEL
    target = check_push(Target(**job["target"]))
    scrub_configs(model, run.spec())
    facts = saved_facts(run, model, job["step"])
    Card(run, facts, target.repository, target.revision, ask_hub=True).write(model)
    files = [str(file.relative_to(model)) for file in files_in(model)]
    return upload(model, files, target, message=job["message"], notify=print, go_on="a later upload goes on")


if __name__ == "__main__":
    main(sys.argv[1])
