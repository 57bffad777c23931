"""Attention over packed trees: each answer attends to its prompt and itself; a prompt is computed once.

A tree is `[prompt | answer | answer ...]`; several trees are concatenated in one row of T tokens, without
padding. transformers is not forked: this is a registered attention function, and the layout of a row reaches
it as a keyword of the model's forward. A call without a layout (generation, a padded batch) is transformers'
own SDPA. Knows lengths, not tokens; refuses what it cannot compute exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..runtime.errors import RunError
from .device import move
from .shared_prompts import SharedPromptCache

SHARED_PREFIX = "shared_prefix"
FLASH_KERNELS = find_spec("flash_attn") is not None
UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias")  # of some models: more than softmax(QK)V


@dataclass(frozen=True)
class PackedLayout:
    """The trees of one packed row, in order: (length of the prompt, lengths of its answers).

    A prompt may be empty.
    """

    trees: tuple[tuple[int, tuple[int, ...]], ...]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence: a prompt and its longest answer."""
        return max(prompt + max(answers) for prompt, answers in self.trees)

    def varlen(self, device: torch.device) -> VarlenLayout:
        """The layout as one varlen call over gathered keys: made once for a forward and its backward."""
        varlen = self.__dict__.get("_varlen")  # not a field: a frozen dataclass compares by its fields
        if varlen is None or varlen.key_indices.device != device:
            varlen = self.__dict__["_varlen"] = _make_varlen(self, device)
        return varlen


@dataclass(frozen=True)
class VarlenLayout:
    """Queries in N segments, in row order; the keys of each segment concatenated: its prompt, then itself."""

    key_indices: Tensor  # [T_k] which token of the row each key is
    cu_seqlens_q: Tensor  # [N + 1] int32
    cu_seqlens_k: Tensor  # [N + 1] int32
    max_seqlen_q: int
    max_seqlen_k: int


def _make_varlen(layout: PackedLayout, device: torch.device) -> VarlenLayout:
    key_indices: list[int] = []
    query_lengths: list[int] = []
    key_lengths: list[int] = []
    tree_start = 0
    for prompt, (first, *others) in layout.trees:
        segment_start = tree_start + prompt + first
        key_indices += range(tree_start, segment_start)
        query_lengths.append(prompt + first)
        key_lengths.append(prompt + first)
        for answer in others:
            key_indices += range(tree_start, tree_start + prompt)
            key_indices += range(segment_start, segment_start + answer)
            query_lengths.append(answer)
            key_lengths.append(prompt + answer)
            segment_start += answer
        tree_start = segment_start

    def cumulative(lengths: list[int]) -> Tensor:
        return move(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)

    return VarlenLayout(
        move(torch.tensor(key_indices), device),
        cumulative(query_lengths),
        cumulative(key_lengths),
        max(query_lengths),
        max(key_lengths),
    )


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: PackedLayout | SharedPromptCache | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

    With the cache of a step of decoding as layout, [B, H, 1, D] -> [B, 1, H, D].

    Raises ValueError for a model that needs more than plain causal attention within its sliding window.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    unsupported = [name for name in UNSUPPORTED_OPTIONS if options.get(name) is not None]
    window = options.get("sliding_window")
    if unsupported or dropout or (window is not None and layout.longest > window):
        missing = unsupported or ("dropout" if dropout else f"window of {window}")
        raise ValueError(f"packed attention has no {missing}")
    if isinstance(layout, SharedPromptCache):
        return layout.attend(query, scaling), None
    half = next((tensor.dtype for tensor in (value, key, query) if tensor.dtype.itemsize == 2), None)
    if half and has_kernel(query.device) and _kernel_takes(query, value):
        # the kernel takes 16 bits only; under autocast rotated queries are float32 and values are not
        return _varlen_attention(query.to(half), key.to(half), value.to(half), layout, scaling), None
    return _sdpa_by_segment(query, key, value, layout, scaling), None


def _sdpa_by_segment(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None
) -> Tensor:
    """One SDPA call for each prompt with its first answer (causal), and one for each further answer.

    A further answer attends to all of the prompt, and causally to itself.
    """
    groups = query.shape[1] // key.shape[1]
    sizes = [size for prompt, (first, *others) in layout.trees for size in (prompt + first, *others)]
    segments = zip(
        *(tensor.split(sizes, dim=2) for tensor in (query, repeat_kv(key, groups), repeat_kv(value, groups))),
        strict=True,
    )
    outputs = []
    for prompt, (_, *others) in layout.trees:
        q, k, v = next(segments)
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling))
        prompt_k, prompt_v = k[:, :, :prompt], v[:, :, :prompt]
        for answer in others:
            q, k, v = next(segments)
            mask = torch.ones(answer, prompt + answer, dtype=torch.bool, device=q.device).tril(prompt)
            k, v = torch.cat([prompt_k, k], dim=2), torch.cat([prompt_v, v], dim=2)
            outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None
) -> Tensor:
    """One varlen FlashAttention call.

    Its causal mask is aligned bottom right: a query segment shorter than its keys sees all of its prompt.
    """
    varlen = layout.varlen(query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H, D]
    q = q.contiguous()
    k, v = k.index_select(0, varlen.key_indices), v.index_select(0, varlen.key_indices)
    segments = (varlen.cu_seqlens_q, varlen.cu_seqlens_k, varlen.max_seqlen_q, varlen.max_seqlen_k)
    try:
        return _kernel(q, k, v, segments, scaling)[None]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{kernel_name(query.device)} failed on {query.device} ({reason}); "
            "use model.attention=sdpa, which pads, or other versions of torch and flash-attn."
        ) from error


def _kernel(q: Tensor, k: Tensor, v: Tensor, segments: tuple[Any, ...], scaling: float | None) -> Tensor:
    """flash-attn where it is installed, else torch's own: [T, H, D]."""
    if FLASH_KERNELS:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, *segments, softmax_scale=scaling, causal=True)
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 has no word for fewer key heads than query heads: its kernel counts them
    grouped: dict[str, Any] = (
        {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in _parameters(varlen_attn) else {}
    )
    output = varlen_attn(q, k, v, *segments, scale=scaling, window_size=(-1, 0), **grouped)
    assert isinstance(output, Tensor)
    return output


@cache
def _parameters(function: Any) -> frozenset[str]:
    return frozenset(signature(function).parameters)


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether packed 16-bit rows are computed by one kernel here: CUDA, compute capability 8.0 or higher, and
    flash-attn or a torch whose varlen attention has windows and scales (2.11 or later).
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return FLASH_KERNELS or _torch_has_varlen()


@cache
def _torch_has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= _parameters(varlen_attn)


def _kernel_takes(query: Tensor, value: Tensor) -> bool:
    """FlashAttention's heads: at most 256 numbers, a multiple of 8, values as wide as keys."""
    width = query.shape[-1]
    return width <= 256 and width % 8 == 0 and value.shape[-1] == width


def kernel_name(device: torch.device) -> str | None:
    """Name of the kernel for packed 16-bit rows on this device; None on a CPU, where there is no choice."""
    if device.type == "cpu":
        return None
    if not has_kernel(device):
        return "SDPA, a segment at a time"
    return "flash-attn" if FLASH_KERNELS else "torch's varlen attention"


def dummy_mask(device: torch.device) -> Tensor:
    """A 4D mask [1, 1, 1, 1]: transformers passes it on as it is, and packed attention ignores it."""
    return torch.zeros(1, 1, 1, 1, device=device)


def unsupported_reason(config: Any, longest: int) -> str | None:
    """Why sequences of `longest` tokens cannot be packed (window, positions, other layer types), or None."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        return f"its layers are {' and '.join(sorted(others))}"
    if changes := changing_positions(config, longest):
        return changes
    window = getattr(config, "sliding_window", None)
    active = "sliding_attention" in kinds or (
        getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True)
    )
    if window is not None and active and longest > window:
        return f"its window is {window} tokens and sequences have up to {longest}"
    return None


def changing_positions(config: Any, longest: int) -> str | None:
    """Why a call with sequences of `longest` tokens computes others' positions otherwise, or None."""
    for kind, original in _length_dependent_ropes(config):
        if longest > original:
            return f"its {kind} positions change beyond {original} tokens and sequences have up to {longest}"
    return None


def stateful_rope_limit(config: Any) -> int | None:
    """Tokens beyond which dynamic RoPE makes a log-probability depend on earlier calls; None without."""
    return next((limit for kind, limit in _length_dependent_ropes(config) if kind == "dynamic RoPE"), None)


def _length_dependent_ropes(config: Any) -> list[tuple[str, int]]:
    """RoPE whose frequencies depend on a call's longest sequence: its name, and up to which length not.

    transformers decides by the largest position of a call (`dynamic_rope_update` in its modeling_rope_utils).
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    found = []
    for settings in by_layer_type or [parameters]:
        kind, own = settings.get("rope_type", "default"), getattr(config, "max_position_embeddings", None)
        if kind == "longrope":
            found.append(("longrope", settings.get("original_max_position_embeddings") or own))
        elif "dynamic" in kind:
            found.append(("dynamic RoPE", own))
    return [(kind, limit) for kind, limit in found if limit]


def register() -> None:
    """Register `attn_implementation="shared_prefix"` with transformers. Safe to call twice."""
    AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
    AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
