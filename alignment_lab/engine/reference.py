"""The reference: the policy as it starts, asked once before training, and what it said kept for every later run.

Full weights are their own reference. With a fresh adapter it is the model without it; with an adapter that was trained before,
the model with that adapter, never the bare base. No second model is ever in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..distributed import collectives, ranks
from ..distributed.full_state import iter_full_state
from ..runtime.files import cache_directory
from ..runtime.progress import progress_tracker
from .layout import Engine
from .logprobs import score_sequences
from .packing import ScoredSequence
from .reference_cache import Example, ReferenceCache

if TYPE_CHECKING:
    from rich.console import Console

BLOCK_PASSES = 8  # forward passes of a block: what is scored between two looks at the clock


def reference_folder(weights: str, dtype: torch.dtype) -> Path:
    """Where log-probabilities of these weights (`digest`) are kept: its name says all that they depend on besides the token ids."""
    return cache_directory() / "references" / f"{weights[:32]}-{str(dtype).removeprefix('torch.')}"


def weights_digest(model: Any) -> str:
    """The sha256 of every weight that the reference computes with: the same with and without an adapter that does nothing yet.

    Of a sharded model too: every process asks together, the weights are gathered one after the other, and the first one's word counts.
    """
    found = hashlib.sha256(repr(sorted(_facts(model).items())).encode())
    for name, tensor in _weights(model):
        if ranks.is_main_process():
            found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return collectives.broadcast(found.hexdigest())


def _facts(model: Any) -> dict[str, Any]:
    """What of the config changes a number and is no weight."""
    config = model.config.to_diff_dict()
    cosmetic = (
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "_name_or_path",
        "_attn_implementation",
    )
    facts = {
        key: value for key, value in config.items() if key not in cosmetic and not key.endswith("token_id")
    }
    adapters = getattr(model, "peft_config", {}) if not _fresh(model) else {}
    return {
        **facts,
        "adapters": {
            name: (one.r, one.lora_alpha, one.use_rslora)
            for name, one in adapters.items()
            if hasattr(one, "r")
        },
    }


def _weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) as a plain model would have them, by name; of a fresh adapter, nothing."""
    fresh = _fresh(model)
    yield from iter_full_state(model, select=lambda name: not (fresh and "lora_" in name), rename=_plain)


def _plain(name: str) -> str:
    return (
        name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
    )


def _fresh(model: Any) -> bool:
    """Whether the model has an adapter, and one that adds nothing: each of its B matrices is zero."""
    halves = iter_full_state(model, select=lambda name: "lora_B" in name or "lora_embedding_B" in name)
    zeros = [not tensor.any() for _, tensor in halves]
    return bool(zeros) and all(zeros)


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """The model computes as the reference: an adapter that adds nothing is off, and costs nothing."""
    with model.disable_adapter() if _fresh(model) else nullcontext():
        yield


def fetch_reference_logps(
    model: Any,
    sequences: Sequence[ScoredSequence],
    engine: Engine,
    dtype: torch.dtype,
    where: Path,
    console: Console,
) -> tuple[list[torch.Tensor], int]:
    """log p of every answer token of each sequence under the reference, [tokens] nats each, and how many sequences had to be asked.

    Of several processes the first one reads and writes the store; the others help it to score, block by block, and get what it found.
    """

    def ask(block: Sequence[Example]) -> list[np.ndarray]:
        with as_reference(model):
            found = score_sequences(
                model,
                [ScoredSequence(list(prompt), list(answer)) for prompt, answer in block],
                engine,
                dtype,
                iter,
            )
        return [values.float().numpy() for values in found]

    while not ranks.is_main_process():
        if (block := collectives.broadcast(None)) is None:
            return collectives.broadcast(([], 0))
        ask(block)
    found = ReferenceCache(where).fetch(
        [(sequence.prompt, sequence.answer) for sequence in sequences],
        lambda block: ask(collectives.broadcast(block)),
        progress=progress_tracker("reference", console),
        block_tokens=BLOCK_PASSES * engine.max_tokens * engine.world_size,
        notice=lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    collectives.broadcast(None)
    return collectives.broadcast(([torch.from_numpy(values.copy()) for values in found.logps], found.scored))
