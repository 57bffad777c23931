"""One cell of a sweep in a process of this machine.  python -m alignment_lab.entrypoints.sweep_cell RUN

RUN/spec.yaml holds the experiment.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..actions import run_action
from ..actions.train import read_spec
from ..config.compose import errors_as_sentences
from ..runtime.output import keep_output_writable
from ..runtime.run_directory import RunDirectory
from .process_exit import exit_now


def main() -> None:
    """Run the cell; a mistake or a failure ends it with a sentence and the exit code of train.py."""
    keep_output_writable()
    run = RunDirectory(Path(sys.argv[1]))
    with errors_as_sentences():
        run_action(read_spec(run), run)
    exit_now(0)


if __name__ == "__main__":
    main()
