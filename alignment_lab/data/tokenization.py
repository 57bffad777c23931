"""Rows to token ids through the chat template, under TRL's column names. Exact at the seam between prompt and answer.

The prompt is tokenized by itself, as at generation; the answer is what follows it in the whole text. An answer ends with the
template's stop token, which is trained, and with nothing behind it. A text goes by no template: it ends with the tokenizer's own end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

from .blocks import best_fit, pieces
from .formats import DataError
from .templates import Encode, Message, encode_documents, encode_prompts, encoder, rendered, stop_token_ids

__all__ = [
    "TOKEN_COLUMNS",
    "Message",
    "max_sequence_length",
    "encode_prompts",
    "count_tokens",
    "stop_token_ids",
    "tokenize_conversations",
    "tokenize_pairs",
    "tokenize_texts",
    "tokenize_unpaired",
]

Row = dict[str, Any]
BATCH = 1000  # conversations or texts per call of the tokenizer
IDS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "input_ids")
TOKEN_COLUMNS = (*IDS, "labels", "seq_lengths")  # what tokenizing adds to a row, lists of integers all
NO_ROOM = "the prompt fills data.max_length"


def tokenize_pairs(tokenizer: Any, rows: list[Row], max_length: int) -> tuple[list[Row], Counter[str]]:
    """Preference rows as `prompt_ids`, `chosen_ids`, `rejected_ids`, and how many were dropped or truncated.

    A longer completion is cut at its end so that prompt and completion fill max_length; a prompt that leaves no room drops the row.
    """
    counts: Counter[str] = Counter()
    tokenized = []
    turns = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
    for row, (prompt, (chosen, rejected)) in zip(rows, _encode(tokenizer, turns), strict=True):
        room = max_length - len(prompt)
        if room < 1:
            counts[NO_ROOM] += 1
            continue
        counts["truncated"] += max(len(chosen), len(rejected)) > room
        tokenized.append(
            {**row, "prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}
        )
    return tokenized, counts


def tokenize_unpaired(tokenizer: Any, rows: list[Row], max_length: int) -> tuple[list[Row], Counter[str]]:
    """Labelled answers as `prompt_ids` and `completion_ids`, cut and counted as pairs are; `label` stays as it is."""
    counts: Counter[str] = Counter()
    tokenized = []
    neighbours = [
        list(group) for _, group in groupby(rows, key=lambda row: row["prompt"])
    ]  # the halves of a pair share their prompt
    turns = [(group[0]["prompt"], [row["completion"] for row in group]) for group in neighbours]
    for group, (prompt, answers) in zip(neighbours, _encode(tokenizer, turns), strict=True):
        room = max_length - len(prompt)
        if room < 1:
            counts[NO_ROOM] += len(group)
            continue
        counts["truncated"] += sum(len(answer) > room for answer in answers)
        tokenized += [
            {**row, "prompt_ids": prompt, "completion_ids": answer[:room]}
            for row, answer in zip(group, answers, strict=True)
        ]
    return tokenized, counts


def tokenize_conversations(
    tokenizer: Any, rows: list[Row], max_length: int
) -> tuple[list[Row], Counter[str]]:
    """Conversations as `input_ids` and `labels` (-100 where the assistant does not speak), and the same counts."""
    counts: Counter[str] = Counter()
    tokenized = []
    for row, (ids, labels) in zip(
        rows, _with_labels(tokenizer, [row["messages"] for row in rows]), strict=True
    ):
        if all(label == -100 for label in labels[:max_length]):
            counts[NO_ROOM] += 1
            continue
        counts["truncated"] += len(ids) > max_length
        tokenized.append({**row, "input_ids": ids[:max_length], "labels": labels[:max_length]})
    return tokenized, counts


def tokenize_texts(tokenizer: Any, rows: list[Row], max_length: int) -> tuple[list[Row], Counter[str]]:
    """Texts as blocks of at most max_length tokens: `input_ids`, and `seq_lengths`, the lengths of the documents that it holds.

    A document longer than max_length is cut into several; a block takes those that fit together, and carries no other column.
    """
    counts: Counter[str] = Counter()
    documents: list[list[int]] = []
    for ids in _closed(tokenizer, [row["text"] for row in rows]):
        if len(ids) > 1:
            documents += pieces(ids, max_length)
        else:
            counts["`text` has no tokens"] += 1
    made = []
    for group in best_fit([len(ids) for ids in documents], max_length):
        held = [documents[place] for place in group]
        made.append({"input_ids": list(chain.from_iterable(held)), "seq_lengths": [len(ids) for ids in held]})
    return made, counts


def count_tokens(row: Row) -> int:
    """Tokens of a tokenized row; a preference row's prompt counts once."""
    return sum(len(row[key]) for key in IDS if key in row)


def max_sequence_length(row: Row) -> int:
    """Tokens of the longest sequence of a tokenized row."""
    if "seq_lengths" in row:
        return max(row["seq_lengths"])
    answers = [len(row[key]) for key in ("chosen_ids", "rejected_ids", "completion_ids") if key in row]
    return len(row["prompt_ids"]) + max(answers) if answers else len(row["input_ids"])


def _closed(tokenizer: Any, documents: list[str]) -> Iterator[list[int]]:
    """The ids of every text, with the tokenizer's end behind them."""
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            "model.path: its tokenizer has no token that ends a text; choose another model, or give its tokenizer an eos_token."
        )
    for start in range(0, len(documents), BATCH):
        for ids in encode_documents(tokenizer, documents[start : start + BATCH]):
            yield ids if ids[-1:] == [end] else [*ids, end]


def _encode(
    tokenizer: Any, turns: list[tuple[list[Message], list[list[Message]]]]
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """(prompt ids, ids of each answer) of every (prompt, answers to it)."""
    stops, encode = set(stop_token_ids(tokenizer)), encoder(tokenizer)
    for start in range(0, len(turns), BATCH):
        batch = turns[start : start + BATCH]
        before = rendered(tokenizer, [prompt for prompt, _ in batch], generation_prompt=True)
        whole = rendered(tokenizer, [prompt + answer for prompt, answers in batch for answer in answers])
        ids = encode(before + whole)
        following = zip(whole, ids[len(before) :], strict=True)
        for (_, answers), prompt_text, prompt in zip(batch, before, ids[: len(before)], strict=True):
            yield (
                prompt,
                [_until_stop(_behind(encode, prompt, prompt_text, *next(following)), stops) for _ in answers],
            )


def _behind(encode: Encode, prompt: list[int], prompt_text: str, text: str, ids: list[int]) -> list[int]:
    """The ids behind the prompt; where a token straddles the seam, the answer is tokenized by itself, as generation would."""
    if ids[: len(prompt)] == prompt:
        return ids[len(prompt) :]
    if not text.startswith(prompt_text):
        raise DataError(
            "model.chat_template: a prompt with its answer does not begin with the prompt alone; choose another template."
        )
    return encode([text[len(prompt_text) :]])[0]


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    """Up to the last stop token, which stays: a template's newline behind it is never generated."""
    end = next((place for place in range(len(ids), 0, -1) if ids[place - 1] in stops), len(ids))
    return ids[:end]


def _with_labels(tokenizer: Any, chats: list[list[Message]]) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of every conversation: each of the assistant's turns is an answer to all before it, but one that opens it."""
    answers = [
        [place for place, message in enumerate(chat) if place and message["role"] == "assistant"]
        for chat in chats
    ]
    turns = [
        (chat[:place], [chat[place : place + 1]])
        for chat, places in zip(chats, answers, strict=True)
        for place in places
    ]
    encoded = _encode(tokenizer, turns)
    for places in answers:
        ids: list[int] = []
        labels: list[int] = []
        for _ in places:
            prompt, (answer,) = next(encoded)
            between = prompt[len(ids) :] if prompt[: len(ids)] == ids else None
            if between is None:  # the template rewrites earlier turns: only the latest answer can be exact
                ids, labels, between = [], [], prompt
            ids, labels = ids + between + answer, labels + [-100] * len(between) + answer
        yield ids, labels
