"""Triton: RMSNorm in one kernel each way (and a sum over partial gradients of a weight that is trained)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_WIDTH = 16384  # numbers of a row: a program holds it in registers
TILE = 2048  # numbers of a program's tile, where a row is shorter
PROGRAMS = 1024  # of the backward pass, at most: each adds up the weight's gradient over its rows


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    out_ptr,
    scales_ptr,
    count,
    width,
    eps,
    ONE_PLUS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < count)[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    normed = x * scale[:, None]
    if ONE_PLUS:  # noqa: SIM108
        out = normed * (1.0 + weight)
    else:  # rounded as between two kernels
        out = normed.to(x_ptr.dtype.element_ty).to(tl.float32) * weight
    tl.store(out_ptr + places, out, mask=inside)
    tl.store(scales_ptr + rows, scale, mask=rows < count)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    gradient_ptr,
    x_ptr,
    weight_ptr,
    scales_ptr,
    of_x_ptr,
    of_weight_ptr,
    count,
    width,
    ONE_PLUS: tl.constexpr,
    TRAINED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    if ONE_PLUS:
        weight += 1.0
    of_weight = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.program_id(0) * ROWS, count, tl.num_programs(0) * ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (rows < count)[:, None] & (columns < width)[None, :]
        places = rows[:, None] * width + columns[None, :]
        gradient = tl.load(gradient_ptr + places, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales_ptr + rows, mask=rows < count, other=0.0)[:, None]
        normed = x * scale
        weighted = gradient * weight
        mean = tl.sum(normed * weighted, axis=1)[:, None] / width
        tl.store(of_x_ptr + places, scale * (weighted - normed * mean), mask=inside)
        if TRAINED:
            of_weight += tl.sum(gradient * normed, axis=0)
    if TRAINED:
        tl.store(of_weight_ptr + tl.program_id(0) * width + columns, of_weight, mask=columns < width)


class RmsNorm(torch.autograd.Function):
    """x [..., H] / rms(x) * weight [H] in `dtype`; with `one_plus` times (1 + weight), as Gemma has it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, one_plus: bool, dtype: torch.dtype
    ) -> Tensor:
        """The output; keeps what backward needs."""
        x = x.contiguous()
        width = x.shape[-1]
        count = x.numel() // width
        output = torch.empty_like(x, dtype=dtype)
        scales = torch.empty(count, dtype=torch.float32, device=x.device)
        tile = _tile(width)
        if count:
            _forward[(triton.cdiv(count, tile["ROWS"]),)](
                x, weight, output, scales, count, width, eps, ONE_PLUS=one_plus, **tile
            )
        ctx.save_for_backward(x, weight, scales)
        ctx.one_plus = one_plus
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs."""
        x, weight, scales = ctx.saved_tensors
        width, count, tile = x.shape[-1], len(scales), _tile(x.shape[-1])
        programs = max(1, min(PROGRAMS, triton.cdiv(count, tile["ROWS"])))
        is_trained = ctx.needs_input_grad[1]
        of_x = torch.empty_like(x)
        parts = torch.empty(programs if is_trained else 0, width, dtype=torch.float32, device=x.device)
        _backward[(programs,)](
            gradient.contiguous(),
            x,
            weight,
            scales,
            of_x,
            parts,
            count,
            width,
            ONE_PLUS=ctx.one_plus,
            TRAINED=is_trained,
            **tile,
        )
        return of_x, parts.sum(0).to(weight.dtype) if is_trained else None, None, None, None


def _tile(width: int) -> dict[str, int]:
    """Rows and columns of a program's tile, and its warps."""
    block = triton.next_power_of_2(width)
    rows = max(1, TILE // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(16, max(4, rows * block // 512))}


def norm_forward(module: Any, x: Tensor) -> Tensor:
    """RMSNorm in the type of the stock module: that of x times weight."""
    return _apply(module, x, torch.promote_types(x.dtype, module.weight.dtype))


def norm_before_linear_forward(module: Any, x: Tensor) -> Tensor:
    """RMSNorm whose output goes into linear layers alone: already in the type that autocast gives them."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return norm_forward(module, x)
    return _apply(module, x, torch.get_autocast_dtype(kind))


def _apply(module: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    output: Tensor = RmsNorm.apply(x, module.weight, module.variance_epsilon, False, dtype)
    return output


def one_plus_norm_forward(module: Any, x: Tensor) -> Tensor:
    """Gemma's: times (1 + weight), in the type of x."""
    output: Tensor = RmsNorm.apply(x, module.weight, module.eps, True, x.dtype)
    return output
