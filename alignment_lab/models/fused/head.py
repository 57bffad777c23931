"""LM head and log softmax together: log p of the target tokens, the logits in blocks of rows.

The float32 copy of the logits never exists. Blocks are kept for the backward pass as long as they fit into a
budget, the others are computed again. The model's forward is stock: the head is told beforehand which tokens
are asked for, and gives their log-probabilities in place of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .available import has_triton
from .precision import matmul_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK_BYTES = 1 << 30  # of logits that are computed at a time
KEPT_SHARE = 32  # one part in so many of a device's memory may hold logits until the backward pass
NAME = "head"


@dataclass
class Request:
    """Which tokens the next call of the head is asked for; what it gives beside their log-probabilities."""

    targets: Tensor  # [S] token ids
    log_sum_squares: bool = False
    is_argmax: bool = False
    squares: Tensor | None = None  # [S], where asked
    argmax: Tensor | None = None  # [S], where asked


class LinearLogprobs(torch.autograd.Function):
    """log softmax(x W')[targets]: x [S, H], W [V, H] -> [S] in float32 or better.

    `rows` in a block; the logits of the first `kept` blocks are kept. Also gives log sum_v p_v^2 and whether
    the target is the most probable token, each [S] or None, without gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, request: Request, rows: int, kept: int
    ) -> tuple[Tensor | None, ...]:
        """The output; keeps what backward needs."""
        targets, cast = request.targets, weight.to(x.dtype)
        accumulate = torch.promote_types(x.dtype, torch.float32)
        logps, normalizers = (torch.empty(len(targets), dtype=accumulate, device=x.device) for _ in range(2))
        squares = torch.empty_like(logps) if request.log_sum_squares else None
        argmax = torch.empty(len(targets), dtype=torch.bool, device=x.device) if request.is_argmax else None
        kept_logits = []
        for number, start in enumerate(range(0, len(targets), rows)):
            block = slice(start, start + rows)
            logits = x[block] @ cast.t()
            outputs = [None if out is None else out[block] for out in (logps, normalizers, squares, argmax)]
            _score_block(logits, targets[block], *outputs)
            if number < kept:
                kept_logits.append(logits)
            del logits
        ctx.save_for_backward(x, weight, targets, normalizers, *kept_logits)
        ctx.rows, ctx.logits_overwritten = rows, False
        ctx.mark_non_differentiable(*(extra for extra in (squares, argmax) if extra is not None))
        return logps, squares, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """d logps / d logits = one_hot(target) - softmax(logits), in the memory of the logits."""
        assert not ctx.logits_overwritten, (
            "the logits are gone: backward through log-probabilities works once"
        )
        x, weight, targets, normalizers, *kept_logits = ctx.saved_tensors
        ctx.logits_overwritten = bool(kept_logits)
        cast = weight.to(x.dtype)
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weight = None
        for number, start in enumerate(range(0, len(targets), ctx.rows)):
            block = slice(start, start + ctx.rows)
            logits = kept_logits[number] if number < len(kept_logits) else x[block] @ cast.t()
            logits = _gradient_of_block(logits, targets[block], normalizers[block], gradient[block])
            if of_x is not None:
                torch.mm(logits, cast, out=of_x[block])
            if ctx.needs_input_grad[1]:
                part = logits.t() @ x[block]
                # several roundings to 16 bits would add up
                of_weight = part if of_weight is None else of_weight.to(normalizers.dtype).add_(part)
            del logits
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight) if of_weight is None else of_weight.to(weight.dtype)
        return of_x, of_weight, None, None, None


def _score_block(
    logits: Tensor,
    targets: Tensor,
    logps: Tensor | None,
    normalizers: Tensor | None,
    squares: Tensor | None,
    argmax: Tensor | None,
) -> None:
    """Write log p of the targets and what belongs to it of a block of rows."""
    assert logps is not None and normalizers is not None
    if has_triton(logits.device) and logps.dtype.itemsize == 4:
        from .log_softmax import score_rows

        return score_rows(logits, targets, logps, normalizers, squares, argmax)
    rows = logits.to(logps.dtype)
    normalizers.copy_(rows.logsumexp(-1))
    logps.copy_(rows.gather(-1, targets[:, None])[:, 0] - normalizers)
    if squares is not None:
        squares.copy_((2 * rows).logsumexp(-1) - 2 * normalizers)
    if argmax is not None:
        argmax.copy_(rows.argmax(-1) == targets)
    return None


def _gradient_of_block(logits: Tensor, targets: Tensor, normalizers: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a block's logits, [rows, V] in their type; the logits are overwritten."""
    if has_triton(logits.device) and normalizers.dtype.itemsize == 4:
        from .log_softmax import overwrite_by_gradient

        overwrite_by_gradient(logits, targets, normalizers, gradient)
        return logits
    rows = logits.to(normalizers.dtype).sub_(normalizers[:, None]).exp_().mul_(-gradient[:, None])
    rows.scatter_add_(1, targets[:, None], gradient[:, None])
    return rows.to(logits.dtype)


def linear_logprobs(hidden: Tensor, weight: Tensor, request: Request) -> Tensor:
    """log p of the request's targets: hidden [S, H], weight [V, H] -> [S]; the rest is in the request."""
    x = hidden.to(matmul_dtype(hidden))
    row_bytes = weight.shape[0] * x.dtype.itemsize
    rows = max(1, BLOCK_BYTES // row_bytes)
    has_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    kept = _kept_bytes(x.device) // (rows * row_bytes) if has_gradient else 0
    logps, request.squares, request.argmax = LinearLogprobs.apply(x, weight, request, rows, kept)
    return logps


def _kept_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return BLOCK_BYTES
    return int(torch.cuda.get_device_properties(device).total_memory) // KEPT_SHARE


def head_forward(module: Any, hidden: Tensor) -> Tensor:
    """The head's own forward; log-probabilities [1, S, 1] of the tokens that were asked for, once asked."""
    request: Request | None = module.__dict__.get("request")
    if request is None:
        return type(module).forward(module, hidden)
    return linear_logprobs(hidden.flatten(0, -2), module.weight, request)[None, :, None]


def is_plain_head(module: Any) -> bool:
    """A linear layer without bias that is called by nothing else."""
    return type(module) is nn.Linear and module.bias is None


def scoring_head(model: PreTrainedModel) -> Any | None:
    """The head that scores tokens itself, of a model however it is wrapped; None where it is stock."""
    inner: Any = model
    while hasattr(inner, "module"):  # wrapped for several processes
        inner = inner.module
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    return head if vars(head or object).get("fused_kernel") == NAME else None


def score_by_head(head: Any, request: Request, call: Callable[[], Tensor]) -> Tensor:
    """log p of the request's targets, [S]; `call` runs the model and gives its logits, [1, S, 1]."""
    head.request = request
    try:
        return call()[0, :, 0]
    finally:
        del head.request
