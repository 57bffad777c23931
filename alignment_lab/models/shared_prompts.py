"""A cache of keys and values that holds each prompt once for all the answers that continue it.

It is transformers' `Cache`, and does the attention of a decoding step itself: a row's query sees its prompt's
keys, which lie there once, and its own answer's. Knows positions, not tokens; refuses windows and biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

FIRST_CAPACITY = 64  # tokens of an answer that fit before its keys are copied to twice the space


class SharedPromptCache(Cache):
    """First P prompts in one packed row, then, after `spread`, a token of each of B rows at a time.

    It is the `layout` keyword of the steps' forward calls, too.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        super().__init__(layers=[])
        width, ends = max(lengths), torch.tensor(lengths, device=device).cumsum(0)
        columns = torch.arange(width, device=device)
        starts = ends - torch.tensor(lengths, device=device)
        is_token = columns < (ends - starts)[:, None]
        # [P, width]: where each token of a prompt is in the packed row; any place beyond its end
        self._places = torch.where(is_token, starts[:, None] + columns, 0)
        self._bias: Tensor | None = None if bool(is_token.all()) else _minus_infinity_where(~is_token)
        self._prompts: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys, values [P, H_kv, width, D]
        self._answers: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> [B, H_kv, capacity, D]
        self._layer = 0  # the one that computes now
        self._num_tokens = 0  # of each answer
        self._prompt_of_row: Tensor | None = None  # [B]
        self._slots: Tensor | None = None  # [B] place of each row among P x `_rows_per_prompt`; None: its own
        self._rows_per_prompt = 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the next one in the longest row."""
        return self._places.shape[1] + self._num_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with the one that is computed."""
        return self.get_seq_length()

    def spread(self, prompt_of_row: Sequence[int]) -> None:
        """From now on row b continues prompt `prompt_of_row[b]`."""
        self._place_rows(torch.tensor(prompt_of_row, device=self._places.device))

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on, in this order."""
        assert self._prompt_of_row is not None
        used = slice(self._num_tokens)
        self._answers = {
            layer: (keys[:, :, used][rows], values[:, :, used][rows])
            for layer, (keys, values) in self._answers.items()
        }
        remaining, prompt_of_row = self._prompt_of_row[rows].unique(return_inverse=True)
        if len(remaining) < len(self._places):
            self._prompts = {
                layer: (keys[remaining], values[remaining]) for layer, (keys, values) in self._prompts.items()
            }
            self._places = self._places[remaining]
            self._bias = None if self._bias is None else self._bias[remaining]
        self._place_rows(prompt_of_row)

    def _place_rows(self, prompt_of_row: Tensor) -> None:
        """Rows of one prompt are multiplied with its keys together: [P, rows per prompt], some unused."""
        self._prompt_of_row = prompt_of_row
        counts = prompt_of_row.bincount(minlength=len(self._places))
        self._rows_per_prompt = int(counts.max())
        order = prompt_of_row.argsort(stable=True)
        ranks = torch.empty_like(order)
        first = (counts.cumsum(0) - counts)[prompt_of_row[order]]
        ranks[order] = torch.arange(len(order), device=order.device) - first
        slots = prompt_of_row * self._rows_per_prompt + ranks
        is_own = torch.equal(slots, torch.arange(int(counts.max()) * len(counts), device=slots.device))
        self._slots = None if is_own else slots

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values [., H_kv, T, D]: of the packed prompts, then of a token a row."""
        self._layer = layer_idx
        if key_states.dtype.itemsize > value_states.dtype.itemsize:
            key_states = key_states.to(value_states.dtype)  # under autocast, rotated keys are float32
        if self._prompt_of_row is None:
            self._prompts[layer_idx] = (
                key_states[0][:, self._places].transpose(0, 1).contiguous(),
                value_states[0][:, self._places].transpose(0, 1).contiguous(),
            )
            return key_states, value_states
        if layer_idx == min(self._prompts):
            self._num_tokens += 1
        self._answers[layer_idx] = _append(
            self._answers.get(layer_idx), (key_states, value_states), self._num_tokens
        )
        return key_states, value_states

    def attend(self, query: Tensor, scaling: float | None) -> Tensor:
        """Each row's token sees its prompt and its answer so far: [B, H, 1, D] -> [B, 1, H, D]."""
        prompt_keys, prompt_values = self._prompts[self._layer]
        keys, values = (tensor[:, :, : self._num_tokens] for tensor in self._answers[self._layer])
        heads = keys.shape[1]
        query = query.reshape(len(query), heads, -1, query.shape[-1])  # [B, H_kv, G, D]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query = (query * scaling).to(keys.dtype)
        to_prompt = self._by_prompt(query) @ prompt_keys.transpose(-1, -2)  # [P, H_kv, R G, width]
        if self._bias is not None:
            to_prompt = to_prompt + self._bias
        scores = torch.cat([self._by_row(to_prompt, len(query)), query @ keys.transpose(-1, -2)], dim=-1)
        exact = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=exact).to(values.dtype)
        of_prompt, of_answer = weights.split([prompt_keys.shape[2], self._num_tokens], dim=-1)
        output = self._by_row(self._by_prompt(of_prompt) @ prompt_values, len(query)) + of_answer @ values
        return output.reshape(len(query), 1, -1, output.shape[-1])

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """[B, H_kv, G, X] -> [P, H_kv, R G, X], zeros where a prompt has fewer than R rows."""
        count, heads, group, width = len(self._places) * self._rows_per_prompt, *rows.shape[1:]
        if self._slots is not None:
            rows = rows.new_zeros(count, heads, group, width).index_copy_(0, self._slots, rows)
        by_prompt = rows.view(-1, self._rows_per_prompt, heads, group, width).transpose(1, 2)
        return by_prompt.reshape(len(by_prompt), heads, -1, width)

    def _by_row(self, by_prompt: Tensor, count: int) -> Tensor:
        """The inverse of `_by_prompt`, for `count` rows."""
        prompts, heads, _, width = by_prompt.shape
        rows = by_prompt.view(prompts, heads, self._rows_per_prompt, -1, width).transpose(1, 2)
        rows = rows.reshape(prompts * self._rows_per_prompt, heads, -1, width)
        return rows if self._slots is None else rows[self._slots]


def _minus_infinity_where(is_padding: Tensor) -> Tensor:
    """[P, width] -> a bias of scores, [P, 1, 1, width]."""
    bias = torch.zeros(is_padding.shape, device=is_padding.device)
    return bias.masked_fill_(is_padding, -torch.inf)[:, None, None]


def _append(
    stored: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor], num_tokens: int
) -> tuple[Tensor, Tensor]:
    """Write token `num_tokens` - 1 of every row; where there is no space left, into twice as much."""
    rows, heads, _, _ = new[0].shape
    if stored is None or stored[0].shape[2] < num_tokens:
        capacity = max(FIRST_CAPACITY, 2 * (num_tokens - 1))
        wider = tuple(one.new_empty(rows, heads, capacity, one.shape[-1]) for one in new)
        for old, space in zip(stored or (), wider, strict=False):
            space[:, :, : num_tokens - 1] = old[:, :, : num_tokens - 1]
        stored = wider[0], wider[1]
    for space, one in zip(stored, new, strict=True):
        space[:, :, num_tokens - 1] = one[:, :, 0]
    return stored
