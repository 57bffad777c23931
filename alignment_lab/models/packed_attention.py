"""Attention over packed trees: every answer sees its own prompt and itself, nothing else, and a prompt is computed once.

A tree is `[prompt | answer | answer ...]`; several trees stand behind each other in one row of T tokens, unpadded. transformers runs
unforked: this is one of its attention functions, and the layout of a row reaches it as a keyword of the model's forward. A call without a
layout (generation, a padded batch) is transformers' own SDPA. Knows lengths, not tokens; refuses what it cannot compute exactly.
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
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # what some models ask of attention beyond softmax(QK)V


@dataclass(frozen=True)
class PackedLayout:
    """The trees of one packed row, in its order: (length of the prompt, lengths of its answers). A prompt may be empty."""

    trees: tuple[tuple[int, tuple[int, ...]], ...]

    @cached_property
    def longest(self) -> int:
        """Tokens from a prompt's start to the end of its longest answer."""
        return max(prompt + max(answers) for prompt, answers in self.trees)

    def gathered(self, device: torch.device) -> Gathered:
        """The same as one varlen call over copied keys: made once for a forward and its backward."""
        found = self.__dict__.get("_gathered")
        if found is None or found.keys.device != device:
            found = self.__dict__["_gathered"] = _gather(self, device)
        return found


@dataclass(frozen=True)
class Gathered:
    """Queries cut into segments as they lie; the keys of each segment gathered behind each other: prompt, then the answer itself."""

    keys: Tensor  # [T_k] which token of the row each key is
    query_ends: Tensor  # [N + 1] int32
    key_ends: Tensor  # [N + 1] int32
    longest_query: int
    longest_key: int


def _gather(layout: PackedLayout, device: torch.device) -> Gathered:
    keys: list[int] = []
    queries, lengths = [], []
    start = 0
    for prompt, (first, *others) in layout.trees:
        keys += range(start, start + prompt + first)
        queries.append(prompt + first)
        lengths.append(prompt + first)
        place = start + prompt + first
        for answer in others:
            keys += [*range(start, start + prompt), *range(place, place + answer)]
            queries.append(answer)
            lengths.append(prompt + answer)
            place += answer
        start = place

    def ends(sizes: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)

    return Gathered(
        torch.tensor(keys, device=device), ends(queries), ends(lengths), max(queries), max(lengths)
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
    """transformers' contract: query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

    Raises ValueError for a model that asks for more than plain causal attention over rows within its window.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    asked = [name for name in UNSUPPORTED if options.get(name) is not None]
    window = options.get("sliding_window")
    if asked or dropout or (window is not None and layout.longest > window):
        raise ValueError(
            f"packed attention has no {asked or ('dropout' if dropout else f'window of {window}')}"
        )
    half = next((tensor.dtype for tensor in (value, key, query) if tensor.dtype.itemsize == 2), None)
    if (
        query.is_cuda and half
    ):  # the kernel takes nothing wider; under autocast rotated queries are float32 and values are not
        return _by_gathering(query.to(half), key.to(half), value.to(half), layout, scaling), None
    return _by_pieces(query, key, value, layout, scaling), None


def _by_pieces(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
    """A call of SDPA for each prompt with its first answer (causal), and one for each further answer (causal behind the prompt)."""
    groups = query.shape[1] // key.shape[1]
    sizes = [size for prompt, (first, *others) in layout.trees for size in (prompt + first, *others)]
    pieces = zip(
        *(tensor.split(sizes, dim=2) for tensor in (query, repeat_kv(key, groups), repeat_kv(value, groups))),
        strict=True,
    )
    outputs = []
    for prompt, (_, *others) in layout.trees:
        q, k, v = next(pieces)
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling))
        prompt_k, prompt_v = k[:, :, :prompt], v[:, :, :prompt]
        for answer in others:
            q, k, v = next(pieces)
            sees = torch.ones(answer, prompt + answer, dtype=torch.bool, device=q.device).tril(prompt)
            k, v = torch.cat([prompt_k, k], dim=2), torch.cat([prompt_v, v], dim=2)
            outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _by_gathering(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
    """One varlen call of FlashAttention, whose causal mask is aligned to the bottom right: a short query sees all of its prompt."""
    where = layout.gathered(query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H, D]
    q, k, v = q.contiguous(), k.index_select(0, where.keys), v.index_select(0, where.keys)
    ends = (where.query_ends, where.key_ends, where.longest_query, where.longest_key)
    if FLASH_KERNELS:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, *ends, softmax_scale=scaling, causal=True)[None]
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        q, k, v, *ends, scale=scaling, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(output, Tensor)
    return output[None]


def kernel_name(device: torch.device) -> str | None:
    """What packed 16-bit rows are computed by on this device, in words; None where there is no choice."""
    return None if device.type == "cpu" else "flash-attn" if FLASH_KERNELS else "torch's varlen attention"


def dummy_mask(device: torch.device) -> Tensor:
    """A mask of four dimensions, which transformers passes on as it is and packed attention never looks at: [1, 1, 1, 1]."""
    return torch.zeros(1, 1, 1, 1, device=device)


def unsupported_reason(config: Any, longest: int) -> str | None:
    """Why rows of `longest` tokens cannot be packed for this model, or None: a window they exceed, or layers of another kind."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        return f"its layers are {' and '.join(sorted(others))}"
    window = getattr(config, "sliding_window", None)
    active = "sliding_attention" in kinds or (
        getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True)
    )
    if window is not None and active and longest > window:
        return f"it sees {window} tokens back and rows have {longest}"
    return None


def register() -> None:
    """Make `attn_implementation="shared_prefix"` known to transformers. Safe to call twice."""
    AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
    AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
