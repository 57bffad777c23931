"""Rows to token ids under TRL's column names; exact where the answer follows the prompt.

The prompt is encoded by itself, as at generation; the answer is what follows it in the text of the whole
conversation. An answer ends with the template's stop token, which is trained, and with nothing after it. A
text goes through no template: it ends with the tokenizer's EOS. Knows columns and templates (see
`templates`), no model and no loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from ..config import Format
from .blocks import pack_best_fit, split_document
from .reasons import BadRow, DataError, Reason
from .rows import IGNORE_INDEX, Message, Row
from .templates import Encode, apply_chat_template, encode_documents, shared_part_encoder, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 1000  # conversations or texts per call of the tokenizer
ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")
ID_COLUMNS = ("prompt_ids", *ANSWER_COLUMNS, "input_ids")
TOKEN_COLUMNS = (*ID_COLUMNS, "labels", "seq_lengths")  # the columns that tokenization adds, all of integers


@dataclass
class Tokenized:
    """What became of rows that were tokenized: one may become several sequences; texts share blocks."""

    rows: Any = field(default_factory=list)  # a sequence of rows with the columns of tokens
    indices: list[int] = field(
        default_factory=list
    )  # of the row given that each was made from; of blocks none
    dropped: list[tuple[int, BadRow]] = field(default_factory=list)  # (index of the row given, why)
    counts: Counter[str] = field(default_factory=Counter)  # truncated: rows that were cut at max_length

    def add(self, index: int, row: Row) -> None:
        """A row with tokens, made from the row given at `index`."""
        self.rows.append(row)
        self.indices.append(index)

    def drop(self, index: int, reason: Reason, detail: str) -> None:
        """Leave out the row given at `index`."""
        self.dropped.append((index, BadRow(reason, detail)))

    def drop_long_prompt(self, index: int) -> None:
        """Leave out a row whose prompt leaves no room for an answer."""
        self.drop(index, Reason.prompt_too_long, "the prompt fills data.max_length")


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Tokenized:
    """Preference rows with prompt_ids, chosen_ids and rejected_ids, and how many were dropped or truncated.

    A longer answer is cut at its end so that prompt and answer fill max_length; a prompt that leaves no room
    drops the row.
    """
    tokenized = Tokenized()
    turns = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
    encoded = _encode_turns(tokenizer, turns)
    for index, (row, (prompt, (chosen, rejected))) in enumerate(zip(rows, encoded, strict=True)):
        room = max_length - len(prompt)
        if room < 1:
            tokenized.drop_long_prompt(index)
            continue
        tokenized.counts["truncated"] += max(len(chosen), len(rejected)) > room
        ids = {"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}
        tokenized.add(index, {**row, **ids})
    return tokenized


def tokenize_unpaired(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Tokenized:
    """Labeled answers with `prompt_ids` and `completion_ids`, cut and counted like pairs; `label` is kept."""
    tokenized = Tokenized()
    # The halves of a pair are neighbors with the same prompt, which is encoded once.
    groups = [list(group) for _, group in groupby(enumerate(rows), key=lambda row: row[1]["prompt"])]
    turns = [(group[0][1]["prompt"], [row["completion"] for _, row in group]) for group in groups]
    for group, (prompt, answers) in zip(groups, _encode_turns(tokenizer, turns), strict=True):
        room = max_length - len(prompt)
        for (index, row), answer in zip(group, answers, strict=True):
            if room < 1:
                tokenized.drop_long_prompt(index)
                continue
            tokenized.counts["truncated"] += len(answer) > room
            tokenized.add(index, {**row, "prompt_ids": prompt, "completion_ids": answer[:room]})
    return tokenized


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int
) -> Tokenized:
    """Conversations with `input_ids` and `labels` (-100 unless the assistant speaks), and the same counts."""
    tokenized = Tokenized()
    encoded = _encode_with_labels(tokenizer, [row["messages"] for row in rows])
    for index, (row, (ids, labels)) in enumerate(zip(rows, encoded, strict=True)):
        if all(label == IGNORE_INDEX for label in labels[:max_length]):
            tokenized.drop_long_prompt(index)
            continue
        tokenized.counts["truncated"] += len(ids) > max_length
        tokenized.add(index, {**row, "input_ids": ids[:max_length], "labels": labels[:max_length]})
    return tokenized


def tokenize_texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Tokenized:
    """Blocks of at most max_length tokens: `input_ids`, and `seq_lengths`, the lengths of the documents.

    A document longer than max_length is split into several; a block takes those that fit together, and has no
    other column.
    """
    tokenized = Tokenized()
    documents: list[list[int]] = []
    for index, ids in enumerate(_encode_with_eos(tokenizer, [row["text"] for row in rows])):
        if len(ids) > 1:
            documents += split_document(ids, max_length)
        else:
            tokenized.drop(index, Reason.no_tokens, "`text` has no tokens")
    for indices in pack_best_fit([len(ids) for ids in documents], max_length):
        block = [documents[index] for index in indices]
        tokenized.rows.append(
            {"input_ids": list(chain.from_iterable(block)), "seq_lengths": [len(ids) for ids in block]}
        )
    return tokenized


TOKENIZE = {  # of each format of rows
    Format.conversation: tokenize_conversations,
    Format.preference: tokenize_pairs,
    Format.unpaired: tokenize_unpaired,
    Format.text: tokenize_texts,
}


def count_tokens(row: Row) -> int:
    """Tokens of a tokenized row; a preference row's prompt counts once."""
    return sum(len(row[column]) for column in ID_COLUMNS if column in row)


def count_sequence_tokens(row: Row) -> int:
    """Tokens of all sequences of a tokenized row; a prompt counts with each of its answers."""
    answers = [len(row[column]) for column in ANSWER_COLUMNS if column in row]
    return sum(len(row["prompt_ids"]) + length for length in answers) if answers else len(row["input_ids"])


def max_sequence_length(row: Row) -> int:
    """Tokens of the longest sequence of a tokenized row."""
    if "seq_lengths" in row:
        return max(row["seq_lengths"])
    answers = [len(row[column]) for column in ANSWER_COLUMNS if column in row]
    return len(row["prompt_ids"]) + max(answers) if answers else len(row["input_ids"])


def _encode_with_eos(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[list[int]]:
    """The ids of every text, ending with EOS: added unless the text ends with it."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            "model.path: its tokenizer has no token that ends a text; choose another model, "
            "or give its tokenizer an eos_token."
        )
    for start in range(0, len(texts), BATCH_SIZE):
        for ids in encode_documents(tokenizer, texts[start : start + BATCH_SIZE]):
            yield ids if ids[-1:] == [eos] else [*ids, eos]


def _encode_turns(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[list[Message], list[list[Message]]]]
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """(prompt ids, ids of each answer) for every (prompt, answers to it)."""
    stops, encode = set(stop_token_ids(tokenizer)), shared_part_encoder(tokenizer)
    for start in range(0, len(turns), BATCH_SIZE):
        batch = turns[start : start + BATCH_SIZE]
        conversations = [prompt + answer for prompt, answers in batch for answer in answers]
        prompt_texts = apply_chat_template(tokenizer, [prompt for prompt, _ in batch], generation_prompt=True)
        texts = apply_chat_template(tokenizer, conversations)
        ids = encode(prompt_texts + texts)
        prompt_ids, encoded_texts = ids[: len(batch)], zip(texts, ids[len(batch) :], strict=True)
        for (_, answers), prompt_text, prompt in zip(batch, prompt_texts, prompt_ids, strict=True):
            after_prompt = [
                _ids_after_prompt(encode, prompt, prompt_text, *next(encoded_texts)) for _ in answers
            ]
            yield prompt, [_truncate_after_stop(answer, stops) for answer in after_prompt]


def _ids_after_prompt(
    encode: Encode, prompt: list[int], prompt_text: str, text: str, ids: list[int]
) -> list[int]:
    """The ids after the prompt. Where a token would span prompt and answer, the answer is encoded alone."""
    if ids[: len(prompt)] == prompt:
        return ids[len(prompt) :]
    if not text.startswith(prompt_text):
        raise DataError(
            "model.chat_template: a prompt with its answer does not begin with the prompt alone; "
            "choose another template."
        )
    return encode([text[len(prompt_text) :]])[0]


def _truncate_after_stop(ids: list[int], stops: set[int]) -> list[int]:
    """Cut after the last stop token: a line break that the template writes after it is never generated."""
    end = next((length for length in range(len(ids), 0, -1) if ids[length - 1] in stops), len(ids))
    return ids[:end]


def _encode_with_labels(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[Message]]
) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, labels) of every conversation.

    Each turn of the assistant is an answer to all messages before it, except one that opens the conversation.
    """
    answer_indices = [
        [index for index, message in enumerate(messages) if index and message["role"] == "assistant"]
        for messages in conversations
    ]
    turns = [
        (messages[:index], [messages[index : index + 1]])
        for messages, indices in zip(conversations, answer_indices, strict=True)
        for index in indices
    ]
    encoded = _encode_turns(tokenizer, turns)
    for indices in answer_indices:
        ids: list[int] = []
        labels: list[int] = []
        for _ in indices:
            prompt, (answer,) = next(encoded)
            if prompt[: len(ids)] == ids:
                context = prompt[len(ids) :]
            else:  # the template rewrites earlier turns: only the latest answer can be exact
                ids, labels, context = [], [], prompt
            ids, labels = ids + context + answer, labels + [IGNORE_INDEX] * len(context) + answer
        yield ids, labels
