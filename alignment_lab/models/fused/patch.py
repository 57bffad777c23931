"""Gives single modules another forward, and takes it away again. Classes stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

MARK = "fused_kernel"  # attribute of a patched module: which technique


def patch(module: Any, technique: str, forward: Callable[..., Any]) -> None:
    """Let this module compute by `forward(module, ...)`. One that somebody else has wrapped is left alone."""
    if "forward" not in vars(module):
        module.forward = MethodType(forward, module)
        setattr(module, MARK, technique)


def unpatch(model: Any, *techniques: str) -> None:
    """Restore the stock forward of every module, or of those with these techniques."""
    for module in _patched(model):
        if not techniques or getattr(module, MARK) in techniques:
            del module.forward
            delattr(module, MARK)


def techniques_of(model: Any) -> list[str]:
    """Which techniques some module of a model computes by, sorted."""
    return sorted({getattr(module, MARK) for module in _patched(model)})


@contextmanager
def stock_forwards(model: Any) -> Iterator[None]:
    """Within, every module computes as transformers and peft have it."""
    found = [(module, module.forward, getattr(module, MARK)) for module in _patched(model)]
    unpatch(model)
    try:
        yield
    finally:
        for module, forward, technique in found:
            module.forward = forward
            setattr(module, MARK, technique)


def _patched(model: Any) -> list[Any]:
    return [module for module in model.modules() if MARK in vars(module)]
