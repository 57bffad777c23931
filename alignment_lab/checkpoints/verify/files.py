"""The safetensors of a folder: what their headers promise, held against what was trained. Needs no model and no transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import UserError
from ...runtime.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
NAMED = 3  # tensors that a sentence lists
AGAIN = "save it again"


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the headers; no weight is read. Raises UserError for a damaged file, a missing one, an empty tensor."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    files = sorted(folder.glob("*.safetensors"))
    refuse(not files, folder, "holds no safetensors")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  (it is no dictionary)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder}: {file.name} is cut off or damaged ({error}); {AGAIN}.") from None
    promised = (read_json(folder / INDEX) or {}).get("weight_map", {})
    refuse_names(promised.keys() - found.keys(), folder, "lacks {}, which its index promises")
    refuse_names([name for name, shape in found.items() if 0 in shape], folder, "has empty tensors: {}")
    return found


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a folder's safetensors, one after the other."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118


def check_files(folder: Path, expected: Iterable[tuple[str, Tensor]]) -> None:
    """Names and shapes in the headers equal those of the trained state, and none is empty. Raises UserError.

    An adapter's tensors may carry the names of its model or those that peft saves. A tensor that is tied to another is in the files once:
    it may be missing where its values are there under another name.
    """
    found = shapes(folder)
    absent: dict[str, Tensor] = {}
    trained = set()
    for own, tensor in expected:
        name, shape = _as_saved(own), tuple(tensor.shape)
        if name not in found:
            absent[name] = tensor
            continue
        trained.add(name)
        refuse(
            found[name] != shape,
            folder,
            f"holds {name} as {list(found[name])}, and {list(shape)} was trained",
        )
    refuse_names(
        [name for name, tensor in absent.items() if not _is_there(folder, tensor, found)],
        folder,
        "lacks {}, which was trained",
    )
    refuse_names(found.keys() - trained, folder, "holds {}, which was not trained")


def _as_saved(name: str) -> str:
    """The names that peft saves: its own name for an adapter, `default`, is left out."""
    name = name.replace("magnitude_vector.default.weight", "magnitude_vector").replace(
        ".modules_to_save.default.", "."
    )
    return name.replace(".default.", ".")


def _is_there(folder: Path, tensor: Tensor, found: dict[str, tuple[int, ...]]) -> bool:
    like = {name for name, shape in found.items() if shape == tuple(tensor.shape)}
    return bool(like) and any(
        bool((other == tensor.to(other)).all()) for name, other in tensors(folder) if name in like
    )


def refuse(wrong: bool, folder: Path, what: str, remedy: str = AGAIN) -> None:
    """Raise the sentence if it is `wrong`."""
    if wrong:
        raise UserError(f"{folder}: {what}; {remedy}.")


def refuse_names(names: Iterable[str], folder: Path, what: str, remedy: str = AGAIN) -> None:
    """The same where there are names that should not be: the first of them stand in the sentence."""
    wrong = sorted(names)
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    refuse(bool(wrong), folder, what.format(", ".join(wrong[:NAMED]) + more), remedy)
