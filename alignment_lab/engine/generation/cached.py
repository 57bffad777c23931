"""Decoding with transformers' own cache: prompts are computed once, then their cache is repeated."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..logprobs import without_unknown


class CachedDecoder:
    """Continues left-padded prompts: any model that transformers can generate with."""

    name = "transformers' cache"
    shares_prompts = False  # a prompt takes its space once for all of its answers

    def __init__(self, model: Any, prompts: Sequence[list[int]], device: torch.device) -> None:
        self.model, self.device = model, device
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        parameters = signature(self.base.forward).parameters
        self.unused = {"position_ids", "attention_mask"} - set(parameters)  # as transformers' `generate` asks
        self.cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self.ids, self.mask = _left_pad(prompts, device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)

    def start(self, prompt_of_row: Sequence[int]) -> Tensor:
        """Compute every prompt once; the logits [B, V] that predict the first token of each row."""
        logits = self._forward(self.ids, self.positions, is_first=True)
        rows = torch.tensor(prompt_of_row, device=self.device)
        if prompt_of_row != list(range(len(logits))):
            self._select(rows)
            logits = logits[rows]
        self.positions = self.positions[:, -1:]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """The logits [B, V] that predict what follows `tokens` [B]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=-1)
        self.positions = self.positions + 1
        return self._forward(tokens[:, None], self.positions, is_first=False)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        self._select(torch.tensor(rows, device=self.device))

    def _select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _forward(self, ids: Tensor, positions: Tensor, *, is_first: bool) -> Tensor:
        rows = {"attention_mask": self.mask, "position_ids": positions}
        keywords = self.base.prepare_inputs_for_generation(
            ids,
            next_sequence_length=ids.shape[1],
            is_first_iteration=is_first,
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_name: self.cache},
            **{name: value for name, value in rows.items() if name not in self.unused},
        )
        outputs = self.model(**without_unknown(self.model, keywords, ("logits_to_keep",)))
        logits: Tensor = outputs.logits[:, -1]
        return logits


def _left_pad(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [N, T] each, with the prompts aligned at their ends."""
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        tokens[index, width - len(prompt) :] = torch.tensor(prompt)
        mask[index, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)
