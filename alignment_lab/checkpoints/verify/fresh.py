"""The saved model in a process of its own, which has the folder, plain transformers and plain peft, as whoever gets the model has."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import UserError
from ...runtime.files import read_json
from ...runtime.paths import CODE_ROOT
from .files import refuse, shapes
from .loading import Loading

if TYPE_CHECKING:
    from torch import Tensor

OF_A_RUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "ACCELERATE_",
    "FSDP_",
)  # variables


def verify(folder: Path, said: Tensor, how: Loading | None = None, *, tolerance: float) -> float:
    """Load what was saved in a fresh process and ask it what the trained model `said` (see `probe`); how far apart the two are.

    The largest difference, in nats or in scores. Raises UserError, one sentence: which tensors are empty, missing, left over or not
    finite, or how far apart the two are. The folder stays as it was.
    """
    from safetensors.torch import save_file

    how = how or Loading()
    refuse(
        bool(said.isnan().any()),
        folder,
        "was saved from a model that says NaN",
        "lower training.learning_rate",
    )
    shapes(folder)
    with tempfile.TemporaryDirectory() as scratch:
        save_file({"said": said.contiguous()}, Path(scratch, "said.safetensors"))
        command = [
            sys.executable,
            "-m",
            "alignment_lab.checkpoints.verify",
            str(folder.resolve()),
            scratch,
            how.to_json(),
        ]
        ended = subprocess.run(command, env=_environment(how), capture_output=True, text=True, check=False)
        found = read_json(Path(scratch, "result.json"))
    if found is None:
        sys.stderr.write(ended.stderr)
        last = ended.stderr.strip().rpartition("\n")[2]
        reason = (
            f"signal {-ended.returncode}; is there memory for a second model?"
            if ended.returncode < 0
            else last
        )
        raise UserError(f"{folder}: the process that was to load it ended before it could answer: {reason}")
    if found["wrong"]:
        raise UserError(found["wrong"])
    apart, what = float(found["apart"]), "log-probabilities" if said.dim() == 2 else "scores"
    refuse(
        not apart <= tolerance,
        folder,
        f"gives other {what} than the trained model, by up to {apart:.3g} (at most {tolerance:g} is rounding)",
    )
    return apart


def _environment(how: Loading) -> dict[str, str]:
    """Of a process that belongs to no run, asks no network, and finds the lab wherever it is started."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OF_A_RUN)}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE_ROOT), kept.get("PYTHONPATH")]))
    return kept | {"HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if how.device == "cpu" else {})
