"""Decides which fused techniques a model gets, by trying each beside the stock module on the device.

Refuses to know what is trained and how rows are laid out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...distributed import collectives
from ...runtime.errors import describe_error
from .available import has_triton
from .patch import patch, techniques_of, unpatch
from .techniques import TECHNIQUES, Patch

# largest difference to the largest number that two computations of one function may have, by type
TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4, torch.float64: 1e-9}


def use_kernels(model: Any, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Patch what is recognised in `model`, computed in `dtype` on `device`.

    Every technique is tried first on random numbers, forward and backward, once for each kind of module. One
    whose numbers differ from the stock module's, or that fails, is left out, on every process: all must call
    this together. Gives the reason for each that is left out.
    """
    problems = []
    for technique in TECHNIQUES:
        if technique.needs_triton and not has_triton(device):
            problems.append(f"{technique.name}: Triton is not installed")
            continue
        patches = list(technique.patches(model))
        problem = _first_problem(patches, device, dtype)
        if problem is not None:
            problems.append(f"{technique.name}: {problem}")
            continue
        for found in patches:
            patch(found.module, technique.name, found.forward)
    own = set(techniques_of(model))
    shared = own.intersection(*map(set, collectives.all_gather(sorted(own))))
    if missing := sorted(own - shared):
        unpatch(model, *missing)
        problems += [f"{name}: another process cannot compute it" for name in missing]
    return problems


def _first_problem(patches: list[Patch], device: torch.device, dtype: torch.dtype) -> str | None:
    tried = set()
    for found in patches:
        if found.kind in tried:
            continue
        tried.add(found.kind)
        try:
            difference = _difference(found, device, dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a compiler of kernels raises is of many types
            return describe_error(error)
        if not difference <= TOLERANCES[dtype]:
            return f"{type(found.module).__name__} differs by {difference:.2g}"
    return None


def _difference(found: Patch, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference of outputs and gradients, relative to the largest number of each."""
    stock, fused, inputs = found.trial()
    autocast = dtype in (torch.bfloat16, torch.float16)
    results = [
        _outputs_and_gradients(function, inputs, device, dtype, autocast) for function in (stock, fused)
    ]
    return max(
        _relative_difference(one.detach(), other.detach()) for one, other in zip(*results, strict=True)
    )


def _relative_difference(one: Tensor, other: Tensor) -> float:
    precise = torch.promote_types(one.dtype, torch.float32)
    one, other = one.to(precise), other.to(precise)
    return float((one - other).abs().max() / one.abs().max().clamp(min=torch.finfo(precise).tiny))


def _outputs_and_gradients(
    function: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    device: torch.device,
    dtype: torch.dtype,
    autocast: bool,
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(out.shape, generator=generator).to(out) for out in outputs]
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    return [*outputs, *gradients]
