"""The door of a sweep's cell that is a process of this machine.  python -m alignment_lab.entrypoints.sweep_cell RUN, whose spec.yaml says the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..actions import train
from ..config.compose import errors_as_sentences
from ..runtime.run_directory import RunDirectory


def main() -> None:
    """Run it; mistakes and failures end it with a sentence, and the exit code that train.py has."""
    found = RunDirectory(Path(sys.argv[1]))
    with errors_as_sentences():
        train.execute(train.read_spec(found), found)
    sys.stdout.flush()
    os._exit(
        0
    )  # all is written: threads of libraries that nobody joined would end it with an abort now and then


if __name__ == "__main__":
    main()
