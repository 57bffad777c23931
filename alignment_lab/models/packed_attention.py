"""Attention over packed trees: each answer attends to its prompt and itself; a prompt is computed once.

A tree is `[prompt | answer | answer ...]`; several trees are concatenated in one row of T tokens, without
padding. transformers is not forked: this is a registered attention function, and the layout of a row reaches
it as a keyword of the model's forward. A call without a layout (generation, a padded batch) is transformers'
own SDPA. Knows lengths, not tokens; refuses what it cannot compute exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    return VarlenLayout(
        torch.tensor(key_indices, device=device),
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
    layout: PackedLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

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
    half = next((tensor.dtype for tensor in (value, key, query) if tensor.dtype.itemsize == 2), None)
    if query.is_cuda and half:
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
    if FLASH_KERNELS:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, *segments, softmax_scale=scaling, causal=True)[None]
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        q, k, v, *segments, scale=scaling, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(output, Tensor)
    return output[None]


def kernel_name(device: torch.device) -> str | None:
    """Name of the kernel for packed 16-bit rows on this device; None on a CPU, where there is no choice."""
    if device.type == "cpu":
        return None
    return "flash-attn" if FLASH_KERNELS else "torch's varlen attention"


def dummy_mask(device: torch.device) -> Tensor:
    """A 4D mask [1, 1, 1, 1]: transformers passes it on as it is, and packed attention ignores it."""
    return torch.zeros(1, 1, 1, 1, device=device)


def unsupported_reason(config: Any, longest: int) -> str | None:
    """Why sequences of `longest` tokens cannot be packed (window, other layer types), or None."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        return f"its layers are {' and '.join(sorted(others))}"
    window = getattr(config, "sliding_window", None)
    active = "sliding_attention" in kinds or (
        getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True)
    )
    if window is not None and active and longest > window:
        return f"its window is {window} tokens and sequences have up to {longest}"
    return None


def register() -> None:
    """Register `attn_implementation="shared_prefix"` with transformers. Safe to call twice."""
    AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
    AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
