"""The process that does one measured job.  python -m benchmarks.worker JOB.json RESULT.json

Imports are deferred until the job is known, so that the imports of one side cost the other nothing.
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

    return lab.locate_weights(job)


def _lab_rows(job: Job) -> Any:
    from . import lab

    return lab.load_messages(job)


def _lab_tokens(job: Job) -> Any:
    from . import lab

    return lab.time_tokenization(job)


def _lab_scale(job: Job) -> Any:
    from . import lab_scale

    return lab_scale.prepare(job)


def _lab_ready(job: Job) -> Any:
    from . import lab

    return lab.time_startup(job)


def _lab_generation(job: Job) -> Any:
    from . import lab_generation

    return lab_generation.measure(job)


def _trl_train(job: Job) -> Any:
    from . import peers

    return peers.train(job)


def _trl_script(job: Job) -> Any:
    from . import peers

    return peers.run_script(job)


def _trl_tokens(job: Job) -> Any:
    from . import peer_tokens

    return peer_tokens.time_tokenization(job)


def _trl_ready(job: Job) -> Any:
    from . import peer_tokens

    return peer_tokens.time_startup(job)


WORK: dict[str, Callable[[Job], Any]] = {
    "lab.train": _lab_train,  # cases.Measured
    "lab.weights": _lab_weights,  # the directory of the model, for TRL to load
    "lab.messages": _lab_rows,  # rows as messages, for TRL to tokenize
    "lab.tokens": _lab_tokens,  # tokenization by itself
    "lab.scale": _lab_scale,  # many rows, from the file to the packs of an epoch
    "lab.generation": _lab_generation,  # answers, and those of transformers' `generate`
    "lab.ready": _lab_ready,  # start-up until a trainer is ready
    "trl.train": _trl_train,
    "trl.script": _trl_script,
    "trl.tokens": _trl_tokens,
    "trl.ready": _trl_ready,
}


def main() -> None:
    """Run the job and write its result."""
    job = read_job(Path(sys.argv[1]))
    result = WORK[job.work](job)
    Path(sys.argv[2]).write_text(
        json.dumps(asdict(result) if is_dataclass(result) and not isinstance(result, type) else result)
    )


if __name__ == "__main__":
    main()
