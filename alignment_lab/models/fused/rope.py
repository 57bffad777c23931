"""Triton: rotary positions of queries and keys in one kernel each way.

Nothing but cos and sin is kept. Not in place: queries and keys are views of a linear layer's output, and
autograd would copy a gradient for each view that is written to; the bytes moved are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

GLOBAL = "apply_rotary_pos_emb"  # by this name transformers' attention finds the function


@triton.jit
def _rotate_heads(  # type: ignore[no-untyped-def]
    x_ptr,
    out_ptr,
    of_heads,
    heads,
    half,
    cos_low,
    cos_high,
    sin_low,
    sin_high,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < half)
    source = x_ptr + head * of_heads + column
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    if BACKWARD:
        new_low = low * cos_low + high * sin_high
        new_high = high * cos_high - low * sin_low
    else:
        new_low = low * cos_low - high * sin_low
        new_high = high * cos_high + low * sin_high
    place = out_ptr + head * (2 * half) + column
    tl.store(place, new_low, mask=inside)
    tl.store(place + half, new_high, mask=inside)


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    tokens,
    q_row,
    q_head,
    q_token,
    k_row,
    k_head,
    k_token,
    cos_row,
    q_heads,
    k_heads,
    half,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row, token = place // tokens, place % tokens
    column = tl.arange(0, HALF)[None, :]
    angles = row * cos_row + token * (2 * half) + column
    cos_low = tl.load(cos_ptr + angles, mask=column < half, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_ptr + angles + half, mask=column < half, other=0.0).to(tl.float32)
    sin_low = tl.load(sin_ptr + angles, mask=column < half, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_ptr + angles + half, mask=column < half, other=0.0).to(tl.float32)
    _rotate_heads(
        q_ptr + row * q_row + token * q_token, q_out_ptr + place * q_heads * 2 * half, q_head, q_heads, half,
        cos_low, cos_high, sin_low, sin_high, Q_HEADS, HALF, BACKWARD,
    )  # fmt: skip
    _rotate_heads(
        k_ptr + row * k_row + token * k_token, k_out_ptr + place * k_heads * 2 * half, k_head, k_heads, half,
        cos_low, cos_high, sin_low, sin_high, K_HEADS, HALF, BACKWARD,
    )  # fmt: skip


class Rope(torch.autograd.Function):
    """q [B, H, T, D], k [B, H_kv, T, D], cos and sin [B or 1, T, D] -> q and k rotated, in `dtype`.

    The outputs lie in memory as [B, T, H, D], which is what attention over packed rows reads.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The output; keeps what backward needs."""
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.dtypes = q.dtype, k.dtype
        return _launch(q, k, cos, sin, (dtype, dtype), backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs."""
        cos, sin = ctx.saved_tensors
        return *_launch(of_q, of_k, cos, sin, ctx.dtypes, backward=True), None, None, None


def _launch(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtypes: tuple[torch.dtype, torch.dtype], *, backward: bool
) -> tuple[Tensor, Tensor]:
    q, k = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k))
    rows, q_heads, tokens, width = q.shape
    k_heads, half = k.shape[1], width // 2
    outputs = [
        torch.empty(rows, tokens, heads, width, dtype=dtype, device=q.device)
        for heads, dtype in zip((q_heads, k_heads), dtypes, strict=True)
    ]
    if rows * tokens:
        _rotate[(rows * tokens,)](
            q,
            k,
            cos,
            sin,
            *outputs,
            tokens,
            *q.stride()[:3],
            *k.stride()[:3],
            cos.stride(0) if cos.shape[0] > 1 else 0,
            q_heads,
            k_heads,
            half,
            Q_HEADS=triton.next_power_of_2(q_heads),
            K_HEADS=triton.next_power_of_2(k_heads),
            HALF=triton.next_power_of_2(half),
            BACKWARD=backward,
            num_warps=4,
        )
    q_out, k_out = outputs
    return q_out.transpose(1, 2), k_out.transpose(1, 2)


def fused_rope(
    stock: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`apply_rotary_pos_emb` by the kernel; the stock function where shapes are not those of plain RoPE."""

    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        rows, _, tokens, width = q.shape
        fits = unsqueeze_dim == 1 and width % 2 == 0 and k.shape[-1] == width
        if not fits or cos.shape[-2:] != (tokens, width) or cos.shape[0] not in (1, rows):
            return stock(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        kind = q.device.type
        stock_dtype = torch.promote_types(q.dtype, cos.dtype)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else stock_dtype
        rotated: tuple[Tensor, Tensor] = Rope.apply(q, k, cos, sin, dtype)
        return rotated

    return apply_rotary_pos_emb


def stock_rope(attention: type) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The function that an attention class's forward rotates with; None where it finds it in another way."""
    forward: Any = attention.forward  # type: ignore[attr-defined]
    code = getattr(forward, "__code__", None)
    if code is None or GLOBAL not in code.co_names or hasattr(forward, "__wrapped__"):
        return None
    function = forward.__globals__.get(GLOBAL)
    return function if callable(function) else None


def with_fused_rope(attention: type) -> Callable[..., Any]:
    """The class's own forward, which finds the fused function under the name of the stock one.

    The same code over another dictionary of names: neither the class nor its module is changed.
    """
    forward: Any = attention.forward  # type: ignore[attr-defined]
    stock = forward.__globals__[GLOBAL]
    names = {**forward.__globals__, GLOBAL: fused_rope(stock)}
    code, defaults = forward.__code__, forward.__defaults__
    function = FunctionType(code, names, forward.__name__, defaults, forward.__closure__)
    function.__kwdefaults__ = forward.__kwdefaults__
    return function
