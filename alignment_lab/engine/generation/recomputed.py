"""Decoding without a cache: every token costs the forward pass of its whole sequence.

For models whose cache does not give what the sequence alone gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...distributed import collectives, ranks
from ...distributed.full_state import is_sharded
from ..logprobs import without_unknown


class RecomputingDecoder:
    """One sequence in a call, without padding and mask."""

    name = "no cache, so that a token costs the pass of its whole sequence"
    shares_prompts = False  # a prompt takes its space once for all of its answers

    def __init__(self, model: Any, prompts: Sequence[list[int]], device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows = [torch.tensor(prompt, device=device) for prompt in prompts]
        self.in_step = is_sharded(model) and ranks.world_size() > 1

    def start(self, prompt_of_row: Sequence[int]) -> Tensor:
        """The logits [B, V] that predict the first token of each row."""
        logits = self._forward()
        self.rows = [self.rows[prompt] for prompt in prompt_of_row]
        return logits[list(prompt_of_row)]

    def step(self, tokens: Tensor) -> Tensor:
        """The logits [B, V] that predict what follows `tokens` [B]."""
        self.rows = [torch.cat([row, token]) for row, token in zip(self.rows, tokens.split(1), strict=True)]
        return self._forward()

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        self.rows = [self.rows[row] for row in rows]

    def _forward(self) -> Tensor:
        calls = max(collectives.all_gather(len(self.rows))) if self.in_step else len(self.rows)
        logits = [self._last_logits(self.rows[min(call, len(self.rows) - 1)]) for call in range(calls)]
        return torch.stack(logits[: len(self.rows)])

    def _last_logits(self, row: Tensor) -> Tensor:
        keywords = {"input_ids": row[None], "use_cache": False, "logits_to_keep": 1}
        optional = ("logits_to_keep", "use_cache")
        logits: Tensor = self.model(**without_unknown(self.model, keywords, optional)).logits
        return logits[0, -1]
