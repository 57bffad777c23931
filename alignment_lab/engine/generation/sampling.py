"""How the next token is chosen: the most probable one, or one drawn with a seed of the answer's own.

Refuses to know models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 256  # tokens whose probabilities are summed first, when one is drawn
NUCLEUS = 256  # most probable tokens that are sorted first: the whole vocabulary only where they are too few


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    An answer's randomness comes from its prompt's tokens, `seed` and its index among the `n` answers alone:
    neither the batch nor the number of processes changes it, and a larger `max_new_tokens` continues it.
    Equal prompts get equal answers.
    """

    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # the fewest most probable tokens with this much probability are drawn from
    n: int = 1  # answers to each prompt; greedy ones are all the same
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.max_new_tokens > 0 and self.n > 0 and self.temperature >= 0 and 0 < self.top_p <= 1, self


@dataclass(frozen=True)
class Completion:
    """One answer."""

    token_ids: list[int]  # with the stop token, where it stopped at one
    logps: list[float]  # log p of each token under the model itself, at temperature 1 and top_p 1: nats
    finished: bool  # it stopped at a stop token; False: it was cut at max_new_tokens


def uniform_draws(prompt: Sequence[int], sampling: Sampling, index: int) -> NDArray[Any]:
    """Numbers in [0, 1), [max_new_tokens], for the answer of this index to a prompt."""
    digest = hashlib.blake2b(np.asarray(prompt, "<i8").tobytes(), digest_size=16)
    digest.update(f"{sampling.seed},{index}".encode())
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))
    return generator.random(sampling.max_new_tokens)


def choose_tokens(logits: Tensor, sampling: Sampling, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log p at temperature 1: [B], [B].

    `logits` [B, V]; `draws` [B], one number in [0, 1) a row, which picks the token whose share of the
    cumulative probability, in the order of token ids, it falls into.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
        probabilities = scaled.softmax(-1)
        if sampling.top_p < 1:
            probabilities = torch.where(
                probabilities >= _nucleus_threshold(probabilities, sampling.top_p), probabilities, 0.0
            )
        tokens = _draw(probabilities, draws)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def _draw(probabilities: Tensor, draws: Tensor) -> Tensor:
    """The tokens [B] whose shares of the cumulative probability, up to a factor, the draws [B] fall into.

    First the block of tokens, then the token in it: a running sum over a whole vocabulary is slow.
    """
    vocabulary = probabilities.shape[-1]
    if vocabulary % BLOCK:
        probabilities = F.pad(probabilities, (0, -vocabulary % BLOCK))
    blocks = probabilities.view(len(probabilities), -1, BLOCK)
    masses = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    drawn = draws[:, None].to(masses) * masses[:, -1:]
    block = torch.searchsorted(masses, drawn, right=True).clamp(max=masses.shape[-1] - 1)  # [B, 1]
    before = torch.where(block > 0, masses.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, BLOCK))[:, 0].double().cumsum(-1)
    token = torch.searchsorted(inside, drawn - before, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + token)[:, 0].clamp(max=vocabulary - 1)


def _nucleus_threshold(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest probability that is drawn from, [B, 1]; equal ones are in together, whatever their order.

    Holtzman et al. 2020, arXiv:1904.09751.
    """
    count = min(NUCLEUS, probabilities.shape[-1])
    while True:
        largest = probabilities.topk(count, dim=-1).values
        mass = largest.double().cumsum(-1)
        if count == probabilities.shape[-1] or bool((mass[:, -1] >= top_p).all()):
            last = (mass < top_p).sum(-1, keepdim=True).clamp(max=count - 1)
            return largest.gather(-1, last)
        count = probabilities.shape[-1]
