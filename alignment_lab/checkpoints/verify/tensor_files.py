"""The safetensors files of a folder: what their headers promise, compared with what was trained.

Needs no model and no transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import UserError
from ...runtime.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
MAX_TENSORS_LISTED = 3  # tensors that an error message lists
SAVE_AGAIN = "save it again"


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the headers; no weight is read.

    Raises UserError for a damaged file, a missing file and an empty tensor.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted(folder.glob("*.safetensors"))
    fail_if(not files, folder, "holds no safetensors")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                names = list(opened.keys())
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder}: {file.name} is cut off or damaged ({error}); {SAVE_AGAIN}.") from None
    indexed = (read_json(folder / INDEX) or {}).get("weight_map", {})
    fail_if_any(indexed.keys() - shapes.keys(), folder, "lacks {}, which its index promises")
    fail_if_any([name for name, shape in shapes.items() if 0 in shape], folder, "has empty tensors: {}")
    return shapes


def iter_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a folder's safetensors files, one tensor in memory at a time."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            yield from ((name, opened.get_tensor(name)) for name in names)


def check_files(folder: Path, trained: Iterable[tuple[str, Tensor]]) -> None:
    """Check that names and shapes in the headers equal those of the trained state, and that none is empty.

    `trained` has the names of the files: see `saved_state` in checkpoints/weights.py. Raises UserError. Tied
    tensors are saved once: one may be missing where its values are in the files under another name.
    """
    shapes = tensor_shapes(folder)
    missing: dict[str, Tensor] = {}
    matched = set()
    for name, tensor in trained:
        shape = tuple(tensor.shape)
        if name not in shapes:
            missing[name] = tensor
            continue
        matched.add(name)
        fail_if(
            shapes[name] != shape,
            folder,
            f"holds {name} as {list(shapes[name])}, and {list(shape)} was trained",
        )
    lost = [name for name, tensor in missing.items() if not _has_equal_tensor(folder, tensor, shapes)]
    fail_if_any(lost, folder, "lacks {}, which was trained")
    fail_if_any(shapes.keys() - matched, folder, "holds {}, which was not trained")


def _has_equal_tensor(folder: Path, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> bool:
    candidates = {name for name, shape in shapes.items() if shape == tuple(tensor.shape)}
    return bool(candidates) and any(
        bool((other == tensor.to(other)).all()) for name, other in iter_tensors(folder) if name in candidates
    )


def fail_if(condition: bool, folder: Path, problem: str, remedy: str = SAVE_AGAIN) -> None:
    """Raise UserError with this problem if the condition holds."""
    if condition:
        raise UserError(f"{folder}: {problem}; {remedy}.")


def fail_if_any(names: Iterable[str], folder: Path, problem: str, remedy: str = SAVE_AGAIN) -> None:
    """Raise UserError if there are any names; the first MAX_TENSORS_LISTED replace the {} in `problem`."""
    ordered = sorted(names)
    more = f" and {len(ordered) - MAX_TENSORS_LISTED} more" if len(ordered) > MAX_TENSORS_LISTED else ""
    fail_if(bool(ordered), folder, problem.format(", ".join(ordered[:MAX_TENSORS_LISTED]) + more), remedy)
