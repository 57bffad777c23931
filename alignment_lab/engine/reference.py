"""Reference log-probabilities: computed once with the initial policy, and cached for every later run.

Full weights are their own reference. With a new adapter the reference is the model without it; with an
adapter that was trained before, it is the model with that adapter, never the bare base. No second model is
ever in memory.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import collectives, ranks
from ..distributed.full_state import iter_full_state
from ..models.facts import adapter_facts, canonical, model_facts
from ..runtime.files import cache_directory, file_digest
from ..runtime.progress import progress_tracker
from .layout import Engine
from .logprobs import score_sequences
from .packing import ScoredSequence
from .reference_cache import Example, ReferenceCache

if TYPE_CHECKING:
    from rich.console import Console

BLOCK_PASSES = 8  # forward passes in a block, after which results may be published
HASH_THREADS = 8  # at most: sha256 takes a core per tensor, and 14 GB of weights take a core half a minute
REMOTE_CODE = "transformers_modules."  # the package that transformers puts a model's own code into


def reference_folder(digest: str, dtype: torch.dtype) -> Path:
    """Cache folder for the log-probabilities of weights with this digest.

    Its name states all that they depend on besides the token ids.
    """
    return cache_directory() / "references" / f"{digest[:32]}-{str(dtype).removeprefix('torch.')}"


def weights_digest(model: Any) -> str:
    """The sha256 of all weights and settings that the reference computes with.

    A new adapter does not change it.

    Works for a sharded model too: all processes must call this together, weights are gathered one by one, and
    the digest of rank 0 is returned everywhere.
    """
    digest = hashlib.sha256(canonical(_config_facts(model)).encode())
    threads = min(HASH_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for name, tensor in _reference_weights(model):
            if ranks.is_main_process():
                digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                waiting.append(pool.submit(_tensor_digest, tensor))
            if len(waiting) > 2 * threads:  # a gathered tensor is a copy: few are held at a time
                digest.update(waiting.popleft().result())
        for future in waiting:
            digest.update(future.result())
    return collectives.broadcast(digest.hexdigest())


def _tensor_digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).digest()


def _config_facts(model: Any) -> dict[str, Any]:
    """What changes a number besides the weights: settings of the model and of a trained adapter, and the code
    that the model's files bring.
    """
    adapters = getattr(model, "peft_config", {}) if not _has_new_adapter(model) else {}
    modules = {type(module).__module__ for module in model.modules()}
    code = {
        name: file_digest(Path(inspect.getfile(sys.modules[name])))
        for name in modules
        if name.startswith(REMOTE_CODE)
    }
    return {
        **model_facts(model.config.to_diff_dict()),
        "adapters": {name: adapter_facts(adapter.to_dict()) for name, adapter in adapters.items()},
        "code": sorted(code.values()),
    }


def _reference_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) under the names of a plain model, sorted; a new adapter is left out."""
    skip_adapter = _has_new_adapter(model)
    yield from iter_full_state(
        model, select=lambda name: not (skip_adapter and "lora_" in name), rename=_plain_name
    )


def _plain_name(name: str) -> str:
    """The name of a weight without the prefixes that peft adds."""
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _has_new_adapter(model: Any) -> bool:
    """Whether the model has an adapter that adds nothing yet: each of its B matrices is zero."""
    b_matrices = iter_full_state(model, select=lambda name: "lora_B" in name or "lora_embedding_B" in name)
    are_zero = [not tensor.any() for _, tensor in b_matrices]  # all are gathered: every process takes part
    return bool(are_zero) and all(are_zero)


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """The model computes as the reference inside the block: a new adapter is disabled, and costs nothing."""
    with model.disable_adapter() if _has_new_adapter(model) else nullcontext():
        yield


def fetch_reference_logps(
    model: Any,
    sequences: Sequence[ScoredSequence],
    engine: Engine,
    dtype: torch.dtype,
    folder: Path,
    console: Console,
) -> tuple[list[Tensor], int]:
    """Reference log-probabilities of each sequence's answer tokens, [tokens] nats; how many were computed.

    The rest came from the cache in `folder`. Of several processes rank 0 reads and writes the cache; the
    others help it to score, block by block, and get its results.
    """

    def score_block(block: Sequence[Example]) -> list[np.ndarray]:
        examples = [ScoredSequence(list(prompt), list(answer)) for prompt, answer in block]
        with as_reference(model):
            logps = score_sequences(model, examples, engine, dtype, iter)
        return [values.float().numpy() for values in logps]

    while not ranks.is_main_process():
        block = collectives.broadcast(None)
        if block is None:
            return collectives.broadcast(([], 0))
        score_block(block)
    result = ReferenceCache(folder).fetch(
        [(sequence.prompt, sequence.answer) for sequence in sequences],
        lambda block: score_block(collectives.broadcast(block)),
        progress=progress_tracker("reference", console),
        block_tokens=BLOCK_PASSES * engine.max_tokens * engine.world_size,
        notify=lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    collectives.broadcast(None)
    return collectives.broadcast(([torch.from_numpy(logps.copy()) for logps in result.logps], result.scored))
