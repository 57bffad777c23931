"""The process in which one thing is measured.  python -m benchmarks.worker JOB.json RESULT.json

Imports nothing before it knows what for: the imports of one side are no cost of the other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from .cases import Job, read_job


def _lab_train(job: Job) -> Any:
    from . import lab

    return lab.train(job)


def _lab_weights(job: Job) -> Any:
    from . import lab

    return lab.weights(job)


def _lab_rows(job: Job) -> Any:
    from . import lab

    return lab.messages(job)


def _lab_tokens(job: Job) -> Any:
    from . import lab

    return lab.tokens(job)


def _lab_ready(job: Job) -> Any:
    from . import lab

    return lab.ready(job)


def _trl_train(job: Job) -> Any:
    from . import peers

    return peers.train(job)


def _trl_script(job: Job) -> Any:
    from . import peers

    return peers.script(job)


def _trl_tokens(job: Job) -> Any:
    from . import peer_tokens

    return peer_tokens.tokens(job)


def _trl_ready(job: Job) -> Any:
    from . import peer_tokens

    return peer_tokens.ready(job)


WORK: dict[str, Callable[[Job], Any]] = {
    "lab.train": _lab_train,  # cases.Measured
    "lab.weights": _lab_weights,  # where the model lies, for TRL to load
    "lab.messages": _lab_rows,  # rows as messages, for TRL to tokenize
    "lab.tokens": _lab_tokens,  # tokenization by itself
    "lab.ready": _lab_ready,  # start-up to a trainer that could train
    "trl.train": _trl_train,
    "trl.script": _trl_script,
    "trl.tokens": _trl_tokens,
    "trl.ready": _trl_ready,
}


def main() -> None:
    """Do the job, write what it came to."""
    job = read_job(Path(sys.argv[1]))
    found = WORK[job.work](job)
    Path(sys.argv[2]).write_text(
        json.dumps(asdict(found) if is_dataclass(found) and not isinstance(found, type) else found)
    )


if __name__ == "__main__":
    main()
