"""What a run needs in memory, from a model's shape: no weights, no accelerator.

Calibrated on a Llama of 135M parameters in float32, where a token of a forward pass that goes back costs 1.7 MB: a layer keeps about
8 vectors of the hidden size and 6 of the intermediate one for each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STATES = 16  # bytes per trained parameter: float32 weight, gradient and Adam's two moments
SHARE = 0.8  # of free memory that a plan may use: allocators fragment
CPU_TOKENS, CUDA_TOKENS = 1024, 16384  # beyond these a larger forward pass is hardly faster


@dataclass(frozen=True)
class Plan:
    """Tokens per forward pass, and whether activations are computed twice instead of kept."""

    tokens: int
    checkpointing: bool


def activation_bytes(config: Any, tokens: int, width: int, *, checkpointing: bool = False) -> int:
    """What `tokens` tokens keep between forward and backward; `width` is 4 or 2 bytes a number."""
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    layer = 8 * hidden + 6 * intermediate
    layers = config.num_hidden_layers
    kept = layers * hidden + layer if checkpointing else layers * layer
    return tokens * (kept * width + config.vocab_size * 4)  # the logits of scored tokens: at most all of them


def plan(
    config: Any, *, trained: int, width: int, free: int, longest: int, cuda: bool, tokens: int | None, checkpointing: bool | None
) -> Plan:
    """What is set stays; else the largest forward pass that pays and fits, with checkpointing only where nothing fits without.

    `trained` parameters have states, `free` bytes are there besides the weights, `longest` tokens cannot be parted.
    """
    room = int(SHARE * free) - (STATES - 4) * trained
    usual = CUDA_TOKENS if cuda else CPU_TOKENS
    if checkpointing is None:
        checkpointing = activation_bytes(config, max(longest, tokens or 0), width) > room
    if tokens is None:
        each = activation_bytes(config, 1, width, checkpointing=checkpointing)
        tokens = max(1, min(usual, room // each))
    return Plan(tokens, checkpointing)
