"""Rows to token ids through the chat template, under TRL's column names. Exact at the seam between prompt and answer.

The prompt is tokenised by itself, as at generation; the answer is what follows it in the whole text. An answer ends with the
template's stop token, which is trained, and with nothing behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from .formats import DataError

Row = dict[str, Any]
Message = dict[str, str]
BATCH = 1000  # conversations per call of the tokenizer


def pairs(tokenizer: Any, rows: list[Row], max_length: int) -> tuple[list[Row], Counter[str]]:
    """Preference rows as `prompt_ids`, `chosen_ids`, `rejected_ids`, and how many were dropped or truncated.

    A longer completion is cut at its end so that prompt and completion fill max_length; a prompt that leaves no room drops the row.
    """
    counts: Counter[str] = Counter()
    tokenised = []
    turns = [(row["prompt"], row[key]) for row in rows for key in ("chosen", "rejected")]
    both = _encode(tokenizer, turns)
    for row, (prompt, chosen), (_, rejected) in zip(rows, both, both, strict=True):
        room = max_length - len(prompt)
        if room < 1:
            counts["the prompt fills data.max_length"] += 1
            continue
        counts["truncated"] += max(len(chosen), len(rejected)) > room
        tokenised.append({**row, "prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]})
    return tokenised, counts


def conversations(tokenizer: Any, rows: list[Row], max_length: int) -> tuple[list[Row], Counter[str]]:
    """Conversations as `input_ids` and `labels` (-100 where the assistant does not speak), and the same counts."""
    counts: Counter[str] = Counter()
    tokenised = []
    for row, (ids, labels) in zip(rows, _with_labels(tokenizer, [row["messages"] for row in rows]), strict=True):
        if all(label == -100 for label in labels[:max_length]):
            counts["the prompt fills data.max_length"] += 1
            continue
        counts["truncated"] += len(ids) > max_length
        tokenised.append({**row, "input_ids": ids[:max_length], "labels": labels[:max_length]})
    return tokenised, counts


def size(row: Row) -> int:
    """Tokens of a tokenised row; a preference row's prompt counts once."""
    return sum(len(row[key]) for key in ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids") if key in row)


def prompt_ids(tokenizer: Any, prompts: list[list[Message]]) -> list[list[int]]:
    """The ids that the model sees before it answers."""
    return _ids(tokenizer, [_text(tokenizer, prompt, generation_prompt=True) for prompt in prompts])


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens that can end the assistant's turn under this template: its last special token, and the tokenizer's own end."""
    probe = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    ids = _ids(tokenizer, [_text(tokenizer, probe)])[0]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    after = ids[len(_ids(tokenizer, [_text(tokenizer, probe[:1], generation_prompt=True)])[0]) :]
    last = [token for token in after if token in special][-1:]
    if not last:
        raise DataError(
            "model.chat_template: it ends the assistant's turn with no special token, so the model would never learn to stop;"
            " let it close the turn with {{ eos_token }}."
        )
    return list(dict.fromkeys([*last, tokenizer.eos_token_id]))


def _encode(tokenizer: Any, turns: list[tuple[list[Message], list[Message]]]) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of every (prompt, answer)."""
    stops = set(stop_ids(tokenizer))
    for start in range(0, len(turns), BATCH):
        batch = turns[start : start + BATCH]
        before = [_text(tokenizer, prompt, generation_prompt=True) for prompt, _ in batch]
        whole = [_text(tokenizer, prompt + answer) for prompt, answer in batch]
        for prompt, text, prompt_text, ids in zip(_ids(tokenizer, before), whole, before, _ids(tokenizer, whole), strict=True):
            yield prompt, _until_stop(_behind(tokenizer, prompt, prompt_text, ids, text), stops)


def _behind(tokenizer: Any, prompt: list[int], prompt_text: str, ids: list[int], text: str) -> list[int]:
    """The ids behind the prompt; where a token straddles the seam, the answer is tokenised by itself, as generation would."""
    if ids[: len(prompt)] == prompt:
        return ids[len(prompt) :]
    if not text.startswith(prompt_text):
        raise DataError("model.chat_template: a prompt with its answer does not begin with the prompt alone; choose another template.")
    return _ids(tokenizer, [text[len(prompt_text) :]])[0]


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    """Up to the last stop token, which stays: a template's newline behind it is never generated."""
    end = next((place for place in range(len(ids), 0, -1) if ids[place - 1] in stops), len(ids))
    return ids[:end]


def _with_labels(tokenizer: Any, conversations: list[list[Message]]) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of every conversation: each of the assistant's turns is an answer to all before it."""
    turns = [
        (messages[:place], messages[place : place + 1])
        for messages in conversations
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    encoded = _encode(tokenizer, turns)
    for messages in conversations:
        ids: list[int] = []
        labels: list[int] = []
        for message in messages:
            if message["role"] == "assistant":
                prompt, answer = next(encoded)
                between = prompt[len(ids) :] if prompt[: len(ids)] == ids else None
                if between is None:  # the template rewrites earlier turns: only the latest answer can be exact
                    ids, labels, between = [], [], prompt
                ids, labels = ids + between + answer, labels + [-100] * len(between) + answer
        yield ids, labels


def _text(tokenizer: Any, messages: list[Message], generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The template writes the special tokens itself: adding them again would double the first."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
