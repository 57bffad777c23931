"""A model's outputs for a few fixed token ids: enough to tell whether two models are the same function.

Knows no tokenizer and no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...runtime.library_internals import attention_implementation, pop_wrapped_forward

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 16
ROWS = 8  # one row of T x V numbers is enough for a causal model; a reward model gives one number a row


def probe_outputs(model: Any) -> Tensor:
    """Logits [T, V] of a causal model, or scores [N] of a reward model: float32, on the CPU.

    These are ordinary forward calls: all ranks of a sharded model must call this together. The ids come from
    the middle of the vocabulary, away from padding.
    """
    import torch

    size = model.config.get_text_config().vocab_size
    ids = size // 4 + torch.arange(ROWS * TOKENS).view(ROWS, 1, TOKENS) * 7919 % max(1, size // 2)
    device = next(model.parameters()).device
    with plain_forward_mode(model):
        first = model(input_ids=ids[0].to(device), use_cache=False).logits
        if first.dim() == 3:
            return first[0].float().cpu()
        others = [model(input_ids=row.to(device), use_cache=False).logits for row in ids[1:]]
    return torch.cat([first, *others])[:, 0].float().cpu()


@contextmanager
def plain_forward_mode(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients, and float32 unless some weights are held in bfloat16.

    The model's state is restored.

    The forward that accelerate wraps would cast to bfloat16, which a user who loads the model does not have:
    it is unwrapped.
    """
    import torch

    half = any(weight.dtype is torch.bfloat16 for weight in model.parameters())
    training, attention = model.training, attention_implementation(model) or ""
    wrapped = pop_wrapped_forward(model)
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


def max_difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two results of `probe_outputs`: log-probabilities in nats, or scores."""
    import torch

    if one.dim() == 2:
        one, other = one.log_softmax(-1), other.log_softmax(-1)
    # equal first: a token that is masked out has -inf in both, and -inf - -inf is NaN
    return float(torch.where(one == other, 0.0, (one - other).abs()).max())
