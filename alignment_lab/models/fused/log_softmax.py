"""Triton: log softmax of the target token over rows of logits, and its gradient in the logits' memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of a row at a time


@triton.jit
def _score(  # type: ignore[no-untyped-def]
    logits_ptr,
    targets_ptr,
    logps_ptr,
    normalizers_ptr,
    squares_ptr,
    argmax_ptr,
    width,
    SQUARES: tl.constexpr,
    ARGMAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * width
    target = tl.load(targets_ptr + row)
    columns = tl.arange(0, BLOCK)
    highest = tl.full((), float("-inf"), tl.float32)
    best = tl.full((), 0, tl.int64)
    total = tl.full((), 0.0, tl.float32)
    of_squares = tl.full((), 0.0, tl.float32)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        z = tl.load(logits_ptr + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        block_highest = tl.max(z, axis=0)
        if ARGMAX:
            place = (start + tl.argmax(z, axis=0)).to(tl.int64)
            best = tl.where(block_highest > highest, place, best)
        new = tl.maximum(highest, block_highest)
        scale = tl.exp(highest - new)
        powers = tl.exp(z - new)
        total = total * scale + tl.sum(powers, axis=0)
        if SQUARES:
            of_squares = of_squares * scale * scale + tl.sum(powers * powers, axis=0)
        highest = new
    normalizer = highest + tl.log(total)
    tl.store(normalizers_ptr + row, normalizer)
    tl.store(logps_ptr + row, tl.load(logits_ptr + target).to(tl.float32) - normalizer)
    if SQUARES:
        tl.store(squares_ptr + row, 2.0 * highest + tl.log(of_squares) - 2.0 * normalizer)
    if ARGMAX:
        tl.store(argmax_ptr + row, best == target)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    logits_ptr,
    targets_ptr,
    normalizers_ptr,
    gradient_ptr,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    places = logits_ptr + row * width + columns
    z = tl.load(places, mask=inside, other=float("-inf")).to(tl.float32)
    upstream = tl.load(gradient_ptr + row)
    softmax = tl.exp(z - tl.load(normalizers_ptr + row))
    hit = columns == tl.load(targets_ptr + row)
    tl.store(places, upstream * (tl.where(hit, 1.0, 0.0) - softmax), mask=inside)


def score_rows(
    logits: Tensor,
    targets: Tensor,
    logps: Tensor,
    normalizers: Tensor,
    squares: Tensor | None,
    argmax: Tensor | None,
) -> None:
    """Write log p of each target [S] and the log normalizer, from logits [S, V]; the rest where given."""
    count, width = logits.shape
    if count:
        _score[(count,)](
            logits,
            targets,
            logps,
            normalizers,
            logps if squares is None else squares,
            logps if argmax is None else argmax,
            width,
            SQUARES=squares is not None,
            ARGMAX=argmax is not None,
            BLOCK=BLOCK,
            num_warps=8,
        )


def overwrite_by_gradient(logits: Tensor, targets: Tensor, normalizers: Tensor, gradient: Tensor) -> None:
    """Put the gradient of the logits where they are: gradient [S] x (one_hot(target) - softmax)."""
    count, width = logits.shape
    if count:
        grid = (count, triton.cdiv(width, BLOCK))
        _gradient[grid](logits, targets, normalizers, gradient.contiguous(), width, BLOCK=BLOCK, num_warps=8)
