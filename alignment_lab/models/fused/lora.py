"""A linear layer with a LoRA adapter as one autograd Function: y = x W' + s (x A') B' (+ b).

Equal to peft's layer and cheaper by its copies: the input is cast once, the adapter's product is added inside
the matrix product, and only x and x A' are kept. What is more than plain LoRA on a plain frozen linear layer
is left to peft: dropout, DoRA, several adapters, merged ones, quantized bases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .precision import matmul_dtype


class LoraLinear(torch.autograd.Function):
    """x [..., I], W [O, I] frozen, A [r, I], B [O, r], bias [O] frozen or None, scale s -> [..., O].

    Computes in the type of x, and gives A and B gradients in their own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """The output; keeps what backward needs."""
        rows = x.reshape(-1, x.shape[-1])
        weight, low, high = weight.to(x.dtype), a.to(x.dtype), b.to(x.dtype)
        middle = rows @ low.t()
        output = rows @ weight.t() if bias is None else torch.addmm(bias.to(x.dtype), rows, weight.t())
        output.addmm_(middle, high.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, low, high, middle)
        ctx.scale, ctx.adapter_dtypes, ctx.shape = scale, (a.dtype, b.dtype), x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs."""
        rows, weight, low, high, middle = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        of_middle = (gradient @ high).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_middle, low).view(ctx.shape)
        of_a = of_b = None
        if ctx.needs_input_grad[3]:
            of_a = (of_middle.t() @ rows).to(ctx.adapter_dtypes[0])
        if ctx.needs_input_grad[4]:
            of_b = (gradient.t() @ middle).mul_(ctx.scale).to(ctx.adapter_dtypes[1])
        return of_x, None, None, of_a, of_b, None


def is_plain_lora(module: Any) -> bool:
    """Whether a module is peft's LoRA on a plain frozen linear layer, with one adapter and nothing more."""
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear or len(module.lora_A) != 1:
        return False
    (name,) = module.lora_A
    dropout = module.lora_dropout[name]
    has_dropout = not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0
    halves = (module.lora_A[name], module.lora_B[name])
    return (
        not has_dropout
        and name not in module.lora_variant
        and all(type(half) is nn.Linear and half.bias is None for half in halves)
        and not any(weight.requires_grad for weight in module.base_layer.parameters())
    )


def lora_forward(module: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """peft's forward by the Function; peft's own for what it does not compute at this moment."""
    (name,) = module.lora_A
    is_plain = not (args or options or module.disable_adapters or module.merged)
    if not is_plain or list(module.active_adapters) != [name]:
        return type(module).forward(module, x, *args, **options)
    base, a, b = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    if not torch.is_autocast_enabled(x.device.type) and not x.dtype == base.weight.dtype == a.dtype:
        return type(module).forward(module, x)  # of mixed types: peft knows in which it computes
    scale = module.scaling[name]
    output: Tensor = LoraLinear.apply(x.to(matmul_dtype(x)), base.weight, base.bias, a, b, scale)
    return output
