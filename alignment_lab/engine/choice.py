"""Chooses the layout for a model: packed where that is exact, else padded, else one sequence at a time.

Exact means: what plain transformers computes for each sequence alone. What a config declares about attention
is asked first; then it is computed (`exactness`). Refuses to know methods and data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..distributed import ranks
from ..models.fused.patch import stock_forwards, techniques_of, unpatch
from ..models.packed_attention import SHARED_PREFIX, stateful_rope_limit, unsupported_reason
from ..runtime.errors import UserError
from ..runtime.library_internals import (
    attention_implementation,
    supports_attention_functions,
    supports_sdpa,
)
from .exactness import LAYOUTS, ExactnessCheck
from .layout import Engine
from .verdicts import Verdict, remembered, verdict_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose_engine(
    model: PreTrainedModel,
    longest: int,
    max_tokens: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    weights: str | None = None,
) -> tuple[Engine, str | None]:
    """The engine that is exact for this model, and the reason where it is not the packed one.

    All processes must call this together. Random sequences of up to `longest` tokens are scored in `dtype`,
    each alone and in the layouts; with `weights`, the digest of the model's, once for all runs. Where they
    are exact without the model's fused kernels only, those are removed. Raises UserError where no layout is
    exact, where a token's log-probability depends on later tokens or on other calls, and where training mode
    changes it.
    """
    _require_static_positions(model, longest)
    packs = attention_implementation(model) == SHARED_PREFIX
    plain_attention = _default_attention(model) if packs else None

    def decide() -> Verdict:
        return _decide(model, longest, ExactnessCheck(model, longest, device, dtype, plain_attention))

    key = weights and verdict_key(model, weights, longest, device or model.device, dtype)
    verdict = remembered(key, decide) if key else decide()
    if not verdict.kernels:
        unpatch(model)
    if plain_attention and verdict.layout != "packed":
        model.set_attn_implementation(plain_attention)
    engine = Engine(packed=False, max_tokens=max_tokens, world_size=ranks.world_size(), device=device)
    return replace(engine, **LAYOUTS[verdict.layout]), verdict.reason


def _require_static_positions(model: PreTrainedModel, longest: int) -> None:
    limit = stateful_rope_limit(model.config.get_text_config())
    if limit is not None and longest > limit:
        raise UserError(
            f"model.path: the positions of {type(model).__name__} are scaled dynamically, so that beyond "
            f"{limit} tokens a log-probability depends on the rows before it, and rows have up to {longest}; "
            f"set data.max_length={limit}."
        )


def _decide(model: PreTrainedModel, longest: int, check: ExactnessCheck) -> Verdict:
    """Packed, else padded, else one by one."""
    attention, had_kernels = attention_implementation(model), bool(techniques_of(model))
    if attention != SHARED_PREFIX and supports_attention_functions(model):
        reason: str | None = f"model.attention={attention}"
    else:
        is_own = attention != SHARED_PREFIX
        reason = unsupported_reason(model.config.get_text_config(), longest)
        reason = reason or (
            "it computes attention by code of its own" if is_own else _problem(model, check, "packed")
        )
    if reason is None:
        check.require_same_in_training("packed")
        return Verdict("packed", kernels=had_kernels == bool(techniques_of(model)))
    if check.plain_attention:
        model.set_attn_implementation(check.plain_attention)
    problem = _problem(model, check, "padded")
    if problem is not None:
        check.require_exact_one_by_one()
        reason = f"{reason}; {problem}"
    layout = "padded" if problem is None else "one by one"
    check.require_same_in_training(layout)
    return Verdict(layout, reason, kernels=had_kernels == bool(techniques_of(model)))


def _problem(model: PreTrainedModel, check: ExactnessCheck, layout: str) -> str | None:
    """Why this layout is not exact. Fused kernels are taken from the model where it is exact without them."""
    problem = check.problem(layout)
    if problem is None or not techniques_of(model):
        return problem
    with stock_forwards(model):
        stock_problem = check.problem(layout)
    if stock_problem is None:
        unpatch(model)
        return None
    return problem


def _default_attention(model: PreTrainedModel) -> str:
    """The attention that transformers would choose: some models need what SDPA does not compute."""
    return "sdpa" if supports_sdpa(model) else "eager"
