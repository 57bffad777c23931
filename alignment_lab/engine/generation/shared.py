"""Decoding with the lab's attention: a prompt's keys and values lie in memory once for all of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.packed_attention import PackedLayout, dummy_mask
from ...models.shared_prompts import SharedPromptCache


class SharedPromptDecoder:
    """Prompts packed in one row without padding, for a model that computes packed rows exactly."""

    name = "shared prompts"
    shares_prompts = True  # a prompt takes its space once for all of its answers

    def __init__(self, model: Any, prompts: Sequence[list[int]], device: torch.device) -> None:
        self.model, self.prompts, self.device = model, prompts, device
        self.lengths = [len(prompt) for prompt in prompts]
        self.cache = SharedPromptCache(self.lengths, device)
        self.positions = torch.tensor(self.lengths, device=device)  # of the next token of each prompt, or row

    def start(self, prompt_of_row: Sequence[int]) -> Tensor:
        """Compute every prompt once; the logits [B, V] that predict the first token of each row."""
        last = self.positions.cumsum(0) - 1
        logits = self._forward(
            torch.tensor([[token for prompt in self.prompts for token in prompt]], device=self.device),
            torch.cat([torch.arange(length) for length in self.lengths])[None].to(self.device),
            PackedLayout(tuple((0, (length,)) for length in self.lengths)),
            last,
        )[0]
        if len(logits) != len(last):  # a forward that ignores `logits_to_keep`
            logits = logits[last]
        self.cache.spread(prompt_of_row)
        rows = torch.tensor(prompt_of_row, device=self.device)
        self.positions = self.positions[rows]
        return logits[rows]

    def step(self, tokens: Tensor) -> Tensor:
        """The logits [B, V] that predict what follows `tokens` [B]."""
        logits = self._forward(tokens[:, None], self.positions[:, None], self.cache, 1)
        self.positions = self.positions + 1
        return logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        indices = torch.tensor(rows, device=self.device)
        self.cache.keep(indices)
        self.positions = self.positions[indices]

    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        layout: PackedLayout | SharedPromptCache,
        logits_to_keep: Tensor | int,
    ) -> Tensor:
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=dummy_mask(self.device),
            past_key_values=self.cache,
            use_cache=True,
            layout=layout,
            logits_to_keep=logits_to_keep,
        ).logits
        return logits
