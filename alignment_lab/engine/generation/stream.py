"""One answer token by token, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..logprobs import evaluation_mode
from .choice import choose_decoder
from .sampling import Sampling, choose_tokens, uniform_draws


def stream(
    model: Any,
    prompt: list[int],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[int]:
    """The tokens of the first answer that `generate` gives, each as soon as it is chosen, the stop token too.

    Answers of several models can be gone through in turn: between two tokens nothing of torch is changed.
    """
    with evaluation_mode(model, dtype):
        way = choose_decoder(model, [prompt], len(prompt) + sampling.max_new_tokens, device, dtype)
        decoder = way(model, [prompt], device)
    draws = torch.from_numpy(uniform_draws(prompt, sampling, 0)).to(device)
    token: torch.Tensor | None = None
    for step in range(sampling.max_new_tokens):
        with evaluation_mode(model, dtype):
            logits = decoder.start([0]) if token is None else decoder.step(token)
            token, _ = choose_tokens(logits, sampling, draws[step : step + 1])
        yield int(token)
        if int(token) in stop_ids:
            return
