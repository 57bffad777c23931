"""The log-probability engine: a causal model and token ids in, log p(token | all before it) out.

Every method and every evaluation asks here. Sequences are packed into trees (see attention.py) where the model allows it exactly, and
right-padded where not; the head runs only where a scored token is predicted. Knows no objective and no row of data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..distributed import ranks
from ..models.packed_attention import SHARED_PREFIX, unsupported_reason
from ..runtime.library_internals import attention_implementation, supports_sdpa
from .layout import Engine
from .logprobs import evaluation_mode, score_in_mode, sequence_scores
from .packing import ScoredSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose_engine(
    model: PreTrainedModel, longest: int, budget: int, device: torch.device | None = None
) -> tuple[Engine, str | None]:
    """The engine that serves this model exactly, and why it pads where it does. Every process asks together.

    The model's own words are believed first, then a proof: a small tree must score as its sequences by themselves do.
    """
    engine = Engine(packed=False, max_tokens=budget, world_size=ranks.world_size(), device=device)
    asked = attention_implementation(model)
    if asked != SHARED_PREFIX:
        return engine, f"model.attention={asked}"
    reason = unsupported_reason(model.config, longest) or _disproved(model, device)
    if reason:
        model.set_attn_implementation(_own(model))
    return replace(engine, packed=reason is None), reason


def _own(model: PreTrainedModel) -> str:
    """The attention that transformers would choose: some models ask for what SDPA does not compute."""
    return "sdpa" if supports_sdpa(model) else "eager"


def _disproved(model: PreTrainedModel, device: torch.device | None) -> str | None:
    """Whether a packed tree of random tokens scores otherwise than transformers' own attention has it, as a reason; None where not."""
    ids = torch.randint(
        min(1000, model.config.vocab_size), (24,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    probe = [
        ScoredSequence(ids[:8], ids[8:13]),
        ScoredSequence(ids[:8], ids[13:20]),
        ScoredSequence(ids[20:22], ids[22:]),
    ]
    half = next(model.parameters()).dtype.itemsize < 4
    try:
        with evaluation_mode(model, torch.float32):
            one = _probed(model, probe, Engine(True, 1000, device=device))
            model.set_attn_implementation(_own(model))
            other = _probed(model, probe, Engine(False, 1000, device=device))
            model.set_attn_implementation(SHARED_PREFIX)
    except (ValueError, TypeError, RuntimeError) as error:
        return f"its forward pass refuses packed rows ({' '.join(str(error).split())[:100]})"
    apart = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    return (
        None
        if apart <= (0.3 if half else 1e-3)
        else f"packed and padded log-probabilities differ by {apart:.2g}"
    )


def _probed(model: Any, probe: Sequence[ScoredSequence], engine: Engine) -> list[Tensor]:
    """Log-probabilities, or what a model with another head says of each sequence."""
    if model.can_generate():
        return score_in_mode(model, probe, engine)
    (batch,) = engine.batches(probe)
    return [sequence_scores(model, batch.to(engine.device or model.device))[None]]
