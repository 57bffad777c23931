"""Chooses the layout for a model: packed where that is exact, padded with a reason where it is not.

Knows what models declare about their attention, and checks it by computing. Refuses to know methods and data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..distributed import ranks
from ..models.packed_attention import SHARED_PREFIX, unsupported_reason
from ..runtime.library_internals import attention_implementation, supports_sdpa
from .layout import Engine
from .logprobs import evaluation_mode, score_without_grad, sequence_scores
from .packing import ScoredSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKING_TOLERANCE = 1e-3  # nats between packed and padded log-probabilities
TOLERANCE_16_BIT = 0.3  # the same for weights in bfloat16 or float16


def choose_engine(
    model: PreTrainedModel, longest: int, max_tokens: int, device: torch.device | None = None
) -> tuple[Engine, str | None]:
    """The engine that is exact for this model, and the reason where it pads.

    All processes must call this together.

    First the model's config is asked, then a check: a small tree must score as its sequences do one by one.
    """
    engine = Engine(packed=False, max_tokens=max_tokens, world_size=ranks.world_size(), device=device)
    attention = attention_implementation(model)
    if attention != SHARED_PREFIX:
        return engine, f"model.attention={attention}"
    reason = unsupported_reason(model.config, longest) or _packing_problem(model, device)
    if reason:
        model.set_attn_implementation(_default_attention(model))
    return replace(engine, packed=reason is None), reason


def _default_attention(model: PreTrainedModel) -> str:
    """The attention that transformers would choose: some models need what SDPA does not compute."""
    return "sdpa" if supports_sdpa(model) else "eager"


def _packing_problem(model: PreTrainedModel, device: torch.device | None) -> str | None:
    """Why packed random tokens do not score as with transformers' own attention; None where they do."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(1000, model.config.vocab_size), (24,), generator=generator).tolist()
    sequences = [
        ScoredSequence(ids[:8], ids[8:13]),
        ScoredSequence(ids[:8], ids[13:20]),
        ScoredSequence(ids[20:22], ids[22:]),
    ]
    is_16_bit = next(model.parameters()).dtype.itemsize < 4
    try:
        with evaluation_mode(model, torch.float32):
            packed = _scores(model, sequences, Engine(True, 1000, device=device))
            model.set_attn_implementation(_default_attention(model))
            padded = _scores(model, sequences, Engine(False, 1000, device=device))
            model.set_attn_implementation(SHARED_PREFIX)
    except (ValueError, TypeError, RuntimeError) as error:
        return f"its forward pass refuses packed rows ({' '.join(str(error).split())[:100]})"
    difference = max(float((one - other).abs().max()) for one, other in zip(packed, padded, strict=True))
    if difference <= (TOLERANCE_16_BIT if is_16_bit else PACKING_TOLERANCE):
        return None
    return f"packed and padded log-probabilities differ by {difference:.2g}"


def _scores(model: PreTrainedModel, sequences: Sequence[ScoredSequence], engine: Engine) -> list[Tensor]:
    """Log-probabilities of a language model, or the scores of a reward model."""
    if model.can_generate():
        return score_without_grad(model, sequences, engine)
    (batch,) = engine.batches(sequences)
    return [sequence_scores(model, batch.to(engine.device or model.device))[None]]
