"""Verifies a saved model in a fresh process.

Like any user of the model, that process has only the folder, plain transformers and plain peft.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from signal import SIGINT, Signals
from typing import TYPE_CHECKING

from ...runtime.errors import Interrupted, UserError
from ...runtime.files import read_json
from ...runtime.paths import CODE_ROOT
from ...runtime.signals import HANDLED_SIGNALS
from .plain_loading import LoadOptions
from .tensor_files import fail_if, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

# `-P -c` in place of `-m`: with that the working directory would be searched first, and a copy.py there taken
# for the standard library's. The lab is found by its folder, which is searched for nothing else.
START = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import alignment_lab
del sys.path[0]
from alignment_lab.checkpoints.verify.comparison import main
main(*sys.argv[1:])
"""
RUN_VARIABLES = (  # prefixes of environment variables that make a process part of a distributed run
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "ACCELERATE_",
    "FSDP_",
)
ATTEMPTS = 3  # of a process that is told to stop


def verify_saved(
    folder: Path, expected: Tensor, options: LoadOptions | None = None, *, tolerance: float
) -> float:
    """Load a saved model in a fresh process and compare its outputs with the trained model's.

    `expected` is what `probe_outputs` returned for it. Returns the largest difference, in nats or in scores.
    Raises UserError, one sentence: which tensors are empty, missing, unexpected or not finite, or how large
    the difference is. Raises Interrupted where that process is told to stop again and again. The folder is
    not changed.
    """
    options = options or LoadOptions()
    fail_if(
        bool(expected.isnan().any()),
        folder,
        "was saved from a model whose outputs are NaN",
        "lower training.learning_rate",
    )
    tensor_shapes(folder)
    result = _run_fresh_process(folder, expected, options)
    if result["error"]:
        raise UserError(result["error"])
    difference = float(result["difference"] or "nan")
    outputs = "log-probabilities" if expected.dim() == 2 else "scores"
    fail_if(
        not difference <= tolerance,
        folder,
        f"gives other {outputs} than the trained model, by up to {difference:.3g} "
        f"(at most {tolerance:g} is rounding)",
    )
    return difference


def _run_fresh_process(folder: Path, expected: Tensor, options: LoadOptions) -> dict[str, str | None]:
    """The result.json that the fresh process leaves. Raises UserError where it ends without one."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        save_file({"outputs": expected.contiguous()}, Path(scratch, "expected.safetensors"))
        command = [
            sys.executable,
            "-P",
            "-c",
            START,
            str(CODE_ROOT),
            str(folder.resolve()),
            scratch,
            options.to_json(),
        ]
        process = _run_until_it_ends_by_itself(command, _environment(options))
        result: dict[str, str | None] | None = read_json(Path(scratch, "result.json"))
    if result is None and _was_stopped(process):
        number = Signals(max(-process.returncode, SIGINT))
        raise Interrupted(number, f"{number.name} ended the process that loads the saved model in {folder}")
    if result is None:
        sys.stderr.write(process.stderr)
        last_line = process.stderr.strip().rpartition("\n")[2]
        signaled = f"signal {-process.returncode}; is there memory for a second model?"
        reason = signaled if process.returncode < 0 else last_line
        raise UserError(f"{folder}: the process that loads it ended before it wrote its result: {reason}")
    return result


def _run_until_it_ends_by_itself(
    command: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command, and again where a signal told it to stop: Slurm sends one to every process of a job.

    It has a session of its own: Ctrl-C in the terminal is for the run, which finishes its proof.
    """
    for _ in range(ATTEMPTS):
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, start_new_session=True
        )
        if not _was_stopped(process):
            break
    return process


def _was_stopped(process: subprocess.CompletedProcess[str]) -> bool:
    """Whether a signal told it to stop, which says nothing about the model."""
    interrupted = process.stderr.rstrip().endswith("KeyboardInterrupt")
    return -process.returncode in HANDLED_SIGNALS or (process.returncode != 0 and interrupted)


def _environment(options: LoadOptions) -> dict[str, str]:
    """The environment of a process outside any run, offline."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(RUN_VARIABLES)}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    return kept | {"HF_HUB_OFFLINE": "1"} | hidden
