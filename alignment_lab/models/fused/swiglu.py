"""Triton: silu(gate) * up in one kernel each way; only gate and up are kept."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 4096


@triton.jit
def _forward(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty)  # rounded as between two kernels
    tl.store(out_ptr + places, silu.to(tl.float32) * up, mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    gradient_ptr,
    gate_ptr,
    up_ptr,
    of_gate_ptr,
    of_up_ptr,
    count,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    gradient = tl.load(gradient_ptr + places, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(of_up_ptr + places, gradient * gate * sigmoid, mask=inside)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(of_gate_ptr + places, gradient * up * slope, mask=inside)


class SwiGlu(torch.autograd.Function):
    """gate and up of one shape and type -> silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The output; keeps what backward needs."""
        gate, up = gate.contiguous(), up.contiguous()
        output = torch.empty_like(gate)
        if count := gate.numel():
            _forward[(triton.cdiv(count, BLOCK),)](gate, up, output, count, BLOCK=BLOCK, num_warps=8)
        ctx.save_for_backward(gate, up)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the inputs."""
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        if count := gate.numel():
            _backward[(triton.cdiv(count, BLOCK),)](
                gradient.contiguous(), gate, up, of_gate, of_up, count, BLOCK=BLOCK, num_warps=8
            )
        return of_gate, of_up


def mlp_forward(module: Any, x: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)) of a module with these three projections."""
    output: Tensor = module.down_proj(SwiGlu.apply(module.gate_proj(x), module.up_proj(x)))
    return output
