"""The fresh process of `verify_saved`.

Started by `fresh_process` with FOLDER SCRATCH LOAD_OPTIONS. Reads SCRATCH/expected.safetensors and writes
SCRATCH/result.json.
"""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import UserError
from ...runtime.files import write_json
from . import load_saved, max_difference, probe_outputs
from .plain_loading import LoadOptions
from .tensor_files import fail_if, fail_if_any, iter_tensors


def measure_difference(folder: Path, scratch: Path, options: LoadOptions) -> float:
    """The largest difference between the outputs of the model in `folder` and the expected ones.

    Raises UserError.
    """
    from safetensors.torch import load_file

    nonfinite = [
        name
        for name, tensor in iter_tensors(folder)
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all())
    ]
    fail_if_any(nonfinite, folder, "has non-finite values in {}")
    expected = load_file(scratch / "expected.safetensors")["outputs"]
    outputs = probe_outputs(load_saved(folder, options))
    fail_if(
        outputs.shape != expected.shape,
        folder,
        f"gives outputs of shape {list(outputs.shape)}, and the trained model {list(expected.shape)}",
    )
    return max_difference(expected, outputs)


def main(folder: str, scratch: str, options: str) -> None:
    """The result is a file, so that what libraries print cannot corrupt it."""
    result: dict[str, str | None] = {"difference": None, "error": None}
    try:
        difference = measure_difference(Path(folder), Path(scratch), LoadOptions.from_json(options))
        result["difference"] = str(difference)
    except UserError as error:
        result["error"] = str(error)
    write_json(Path(scratch, "result.json"), result)
