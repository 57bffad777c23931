"""What a model says of a few fixed token ids: enough to tell whether two models are the same function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, ROWS = (
    16,
    8,
)  # a causal model answers one row with T x V numbers; a reward model says one number a row, and is asked all


def probe(model: Any) -> Tensor:
    """Logits [T, V] of a causal model, or a reward model's scores [N]: float32, on the CPU.

    Ordinary forward calls: all processes of a sharded model ask together. Ids come from the middle of the vocabulary, away from padding.
    """
    import torch

    size = model.config.get_text_config().vocab_size
    ids = size // 4 + torch.arange(ROWS * TOKENS).view(ROWS, 1, TOKENS) * 7919 % max(1, size // 2)
    device = next(model.parameters()).device
    with bare(model):
        said = model(input_ids=ids[0].to(device), use_cache=False).logits
        if said.dim() == 3:
            return said[0].float().cpu()
        others = [model(input_ids=row.to(device), use_cache=False).logits for row in ids[1:]]
    return torch.cat([said, *others])[:, 0].float().cpu()


@contextmanager
def bare(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients, and float32 unless some weights are held in bfloat16; all given back.

    What accelerate puts around a forward would cast to bfloat16, and whoever loads the model has no such thing.
    """
    import torch

    half = any(weight.dtype is torch.bfloat16 for weight in model.parameters())
    training, attention = model.training, getattr(model.config, "_attn_implementation", None) or ""
    wrapped = model.__dict__.pop("forward", None) if "_original_forward" in model.__dict__ else None
    if attention.startswith("flash"):
        model.set_attn_implementation("sdpa")  # FlashAttention takes no float32
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=half),
        ):
            yield
    finally:
        model.train(training)
        if attention.startswith("flash"):
            model.set_attn_implementation(attention)
        if wrapped is not None:
            model.forward = wrapped


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference of two probes: of log-probabilities in nats, or of scores."""
    import torch

    if one.dim() == 2:
        one, other = one.log_softmax(-1), other.log_softmax(-1)
    return float(
        torch.where(one == other, 0.0, (one - other).abs()).max()
    )  # a token that is ruled out has -inf in both
