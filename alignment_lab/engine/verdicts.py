"""Which layout was exact for a model, kept in the cache under all that it depends on.

A later run with the same weights, code, versions, precision and lengths need not compute it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distributed import collectives, ranks
from ..models import packed_attention
from ..models.fused import patch
from ..models.fused.patch import techniques_of
from ..runtime.files import cache_directory, json_digest, keep, read_kept
from ..runtime.library_internals import attention_implementation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Verdict:
    """A layout of `exactness.LAYOUTS`, and the reason where it is not the packed one.

    `kernels`: whether it is exact with the fused kernels that the model had.
    """

    layout: str
    reason: str | None = None
    kernels: bool = True


def verdict_key(
    model: PreTrainedModel, weights: str, longest: int, device: torch.device, dtype: torch.dtype
) -> str:
    """A hash of the weights' digest and of everything else that a layout's numbers depend on."""
    facts = {
        "weights": weights,
        "modules": sorted(
            {f"{type(module).__module__}.{type(module).__name__}" for module in model.modules()}
        ),
        "training": [attention_implementation(model), longest, str(dtype), device.type, techniques_of(model)],
        "versions": [version(package) for package in PACKAGES],
        "code": _code_digest(),
    }
    return json_digest(facts)


def remembered(key: str, decide: Callable[[], Verdict]) -> Verdict:
    """The verdict under `key`, or what `decide` gives. All processes must call this together."""
    file = cache_directory() / "layouts" / f"{key}.json"
    known = collectives.broadcast(_read(file) if ranks.is_main_process() else None)
    if known:
        return Verdict(**known)
    verdict = decide()
    if ranks.is_main_process():
        keep(file, asdict(verdict))
    return verdict


def _read(file: Path) -> dict[str, Any] | None:
    """What was kept; None for a file that is not there, or is no verdict."""
    known = read_kept(file)
    return known if isinstance(known, dict) and known.keys() == {"layout", "reason", "kernels"} else None


@cache
def _code_digest() -> str:
    """Of the lab's code that lays rows out and computes them."""
    folders = (Path(__file__).parent, Path(patch.__file__).parent)
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    files.append(Path(packed_attention.__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
