"""The fresh process of `verify`: python -m alignment_lab.checkpoints.verify FOLDER SCRATCH HOW. Reads SCRATCH/said, leaves SCRATCH/result.json."""

from __future__ import annotations

import sys
from pathlib import Path

from ...runtime.errors import UserError
from ...runtime.files import write_json
from . import distance, load, probe
from .files import refuse, refuse_names, tensors
from .loading import Loading


def heard(folder: Path, scratch: Path, how: Loading) -> float:
    """How far the model in `folder` is from what was said. Raises UserError."""
    from safetensors.torch import load_file

    wrong = [
        name
        for name, tensor in tensors(folder)
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all())
    ]
    refuse_names(wrong, folder, "has values that are not finite in {}")
    said, found = load_file(scratch / "said.safetensors")["said"], probe(load(folder, how))
    refuse(
        found.shape != said.shape,
        folder,
        f"says {list(found.shape)} numbers, and the trained model {list(said.shape)}",
    )
    return distance(said, found)


def main(folder: str, scratch: str, how: str) -> None:
    """The result is a file: whatever libraries print is not in its way."""
    result: dict[str, str | None] = {"apart": None, "wrong": None}
    try:
        result["apart"] = str(heard(Path(folder), Path(scratch), Loading.from_json(how)))
    except UserError as error:
        result["wrong"] = str(error)
    write_json(Path(scratch, "result.json"), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
