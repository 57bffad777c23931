"""Rows and tokens of an experiment without a tokenizer: from the characters of its rows, or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from math import ceil

from .. import data
from ..config import Data, Experiment, Format, Truncation
from ..estimate import Workload

CHARACTERS_PER_TOKEN = 4  # of English, with a usual vocabulary
TEMPLATE_TOKENS = 5  # that a chat template adds to a message
SAFETY_FACTOR = 1.25  # of upper bounds: the estimate may be a fifth too small

Size = tuple[float, float]  # tokens, and those of them that are scored


def estimate_workload(spec: Experiment, rows: data.Splits | None) -> tuple[Workload, str]:
    """The workload, and where its numbers come from; `rows` is None where they cannot be read."""
    max_length = spec.data.max_length
    if rows is None:
        tokens = max_length / 2
        scored = tokens if spec.method.format is Format.text else tokens / 2
        reason = "the data cannot be read here, so that half of data.max_length is assumed"
        return Workload(None, tokens, scored), reason
    groups = (_as_one([rows.train[index] for index in group]) for group in data.group_pairs(rows.train))
    sizes = [size for row in groups if (size := _row_size(row, spec.data))[0]]
    total, scored = sum(tokens for tokens, _ in sizes), sum(scored for _, scored in sizes)
    source = f"estimated at {CHARACTERS_PER_TOKEN} characters a token"
    batch = spec.training.global_batch
    if spec.method.format is Format.text:
        blocks = max(1, round(total / max_length))
        bounds = _upper_bounds([(max_length, max_length)] * min(blocks, batch))
        workload = Workload(blocks, total / blocks, scored / blocks, *bounds)
        return workload, f"{source}, in blocks of {max_length}"
    count = max(1, len(sizes))
    most_tokens = nlargest(batch, (tokens for tokens, _ in sizes))
    most_scored = nlargest(batch, (scored for _, scored in sizes))
    bounds = _upper_bounds(list(zip(most_tokens, most_scored, strict=True)))
    return Workload(count, total / count, scored / count, *bounds), source


def _upper_bounds(sizes: Sequence[Size]) -> tuple[int, int, int]:
    """Of the rows of one step: tokens of the longest one, tokens of all, scored tokens of all."""
    longest = max((tokens for tokens, _ in sizes), default=1)
    tokens, scored = sum(tokens for tokens, _ in sizes), sum(scored for _, scored in sizes)
    bounds = [max(1, ceil(SAFETY_FACTOR * estimate)) for estimate in (longest, tokens, scored)]
    return bounds[0], bounds[1], bounds[2]


def _as_one(rows: Sequence[data.Row]) -> data.Row:
    """A row, or the two halves of a pair as the pair."""
    if len(rows) == 1:
        return rows[0]
    good, bad = rows
    return {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"]}


def _row_size(row: data.Row, settings: Data) -> Size:
    """The size of a row, truncated as tokenization truncates it; 0 tokens where its prompt leaves no room."""
    max_length = settings.max_length
    if "text" in row:
        tokens = len(row["text"]) / CHARACTERS_PER_TOKEN
        return tokens, tokens
    if "messages" in row:
        return _conversation_size(row["messages"], max_length)
    prompt = _count_tokens(row["prompt"])
    completions = [_count_tokens(row[key]) for key in ("chosen", "rejected", "completion") if key in row]
    if settings.truncation is Truncation.prompt:
        prompt = min(prompt, max(max_length - max(completions), max_length / 2))
    if prompt >= max_length:
        return 0.0, 0.0
    scored = sum(min(completion, max_length - prompt) for completion in completions)
    return prompt + scored, scored


def _conversation_size(messages: Sequence[data.Message], max_length: int) -> Size:
    """The assistant's turns are scored."""
    tokens = _count_tokens(messages)
    scored = sum(_count_tokens([message]) for message in messages if message["role"] == "assistant")
    kept = min(1.0, max_length / tokens)
    return tokens * kept, scored * kept


def _count_tokens(messages: Sequence[data.Message]) -> float:
    return sum(len(message["content"]) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS for message in messages)
