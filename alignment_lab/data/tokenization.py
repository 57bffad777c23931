"""Rows to token ids under TRL's column names; exact where the answer follows the prompt.

The prompt is encoded by itself, as at generation; the answer is what follows it in the text of the whole
conversation. An answer ends with the template's stop token, which is trained, and with nothing after it. A
text goes through no template: it ends with the tokenizer's EOS. Knows columns and turns (see `turns`), no
model and no loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from ..config import Format
from .blocks import pack_best_fit, split_document
from .encoding import encode_documents, special_text_pattern
from .prompts import is_open
from .reasons import BadRow, DataError, Reason
from .rows import Row
from .templates import answer_mender
from .turns import BATCH_SIZE, Turn, answered_turns, encode_turns, join_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")
ID_COLUMNS = ("prompt_ids", *ANSWER_COLUMNS, "input_ids")
TOKEN_COLUMNS = (*ID_COLUMNS, "labels", "seq_lengths")  # the columns that tokenization adds, all of integers
TRUNCATED, ANSWERS, ANSWERS_TRAINED = "truncated", "answers", "answers trained"  # keys of Tokenized.counts
COUNTED = (TRUNCATED, ANSWERS, ANSWERS_TRAINED)
SPLIT, PARTS = "conversations in parts", "parts of conversations"


@dataclass
class Tokenized:
    """What became of rows that were tokenized: one may become several sequences; texts share blocks."""

    rows: Any = field(default_factory=list)  # a sequence of rows with the columns of tokens
    indices: list[int] = field(
        default_factory=list
    )  # of the row given that each was made from; of blocks none
    # of each row, in the order of COUNTED: those of the row that it was made from, at the first of several
    # sequences and 0 at the others; of blocks none. A list, or an array [rows, 3]
    counted: Any = field(default_factory=list, compare=False)
    dropped: list[tuple[int, BadRow]] = field(default_factory=list)  # (index of the row given, why)
    # truncated: rows that were cut at max_length; answers, answers trained: those of the rows that were kept;
    # conversations in parts, and their parts: those that the template makes several sequences of; any other
    # key says what was seen in as many rows or answers
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, index: int, rows: Iterable[Row], truncated: bool, answers: int, trained: int) -> None:
        """Rows with tokens, all made from the row given at `index`, and what is counted of that."""
        of_row = (int(truncated), answers, trained)
        self.counts.update(dict(zip(COUNTED, of_row, strict=True)))
        for row in rows:
            self.rows.append(row)
            self.indices.append(index)
            self.counted.append(of_row)
            of_row = (0, 0, 0)

    def drop(self, index: int, bad_row: BadRow) -> None:
        """Leave out the row given at `index`."""
        self.dropped.append((index, bad_row))


PROMPT_TOO_LONG = BadRow(Reason.prompt_too_long, "the prompt fills data.max_length")
NO_TOKENS = BadRow(Reason.no_tokens, "`text` has no tokens")
NO_ANSWER = BadRow(Reason.no_tokens, "no turn of the assistant is trained")
EQUAL_TOKENS = BadRow(Reason.equal_tokens, "`chosen` equals `rejected` as the template writes them")
EQUAL_ONCE_CUT = BadRow(Reason.equal_tokens, "`chosen` equals `rejected` once cut at data.max_length")


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Tokenized:
    """Preference rows with prompt_ids, chosen_ids and rejected_ids.

    A longer answer is cut at its end so that prompt and answer fill max_length; a prompt that leaves no room
    drops the row, and so do answers that are equal once they are cut.
    """
    tokenized = Tokenized()
    turns = [
        Turn(row, row["prompt"], [row["chosen"], row["rejected"]], is_open(row["prompt"])) for row in rows
    ]
    encoded = encode_turns(tokenizer, turns, tokenized.counts)
    for index, (row, (prompt, answers)) in enumerate(zip(rows, encoded, strict=True)):
        chosen, rejected = answers
        room = max_length - len(prompt)
        if isinstance(chosen, BadRow) or isinstance(rejected, BadRow):
            tokenized.drop(index, chosen if isinstance(chosen, BadRow) else rejected)  # type: ignore[arg-type]
        elif room < 1:
            tokenized.drop(index, PROMPT_TOO_LONG)
        elif chosen[:room] == rejected[:room]:
            tokenized.drop(index, EQUAL_TOKENS if chosen == rejected else EQUAL_ONCE_CUT)
        else:
            ids = {"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}
            truncated = max(len(chosen), len(rejected)) > room
            tokenized.add(index, [{**row, **ids}], truncated, answers=2, trained=2)
    _count_special_texts(tokenizer, tokenized, ("prompt", "chosen", "rejected"))
    return tokenized


def tokenize_unpaired(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Tokenized:
    """Labeled answers with `prompt_ids` and `completion_ids`, cut like pairs; `label` is kept.

    Neighbors with one prompt, as the halves of a pair are, are dropped where a good and a bad answer are
    equal once they are cut.
    """
    tokenized = Tokenized()
    groups = [list(group) for _, group in groupby(enumerate(rows), key=lambda row: _prompt_parts(row[1]))]
    turns = []
    for group in groups:
        row = group[0][1]
        completions = [row["completion"] for _, row in group]  # the prompt is encoded once for all of them
        turns.append(Turn(row, row["prompt"], completions, is_open(row["prompt"])))
    encoded = encode_turns(tokenizer, turns, tokenized.counts)
    for group, (prompt, answers) in zip(groups, encoded, strict=True):
        room = max_length - len(prompt)
        contradicted = _contradicted([row["label"] for _, row in group], answers, room)
        for (index, row), answer in zip(group, answers, strict=True):
            if isinstance(answer, BadRow):
                tokenized.drop(index, answer)
            elif room < 1:
                tokenized.drop(index, PROMPT_TOO_LONG)
            elif contradicted and tuple(answer[:room]) in contradicted:
                tokenized.drop(index, EQUAL_ONCE_CUT if len(answer) > room else EQUAL_TOKENS)
            else:
                ids = {"prompt_ids": prompt, "completion_ids": answer[:room]}
                tokenized.add(index, [{**row, **ids}], len(answer) > room, answers=1, trained=1)
    _count_special_texts(tokenizer, tokenized, ("prompt", "completion"))
    return tokenized


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int
) -> Tokenized:
    """Conversations with `input_ids` and `labels` (-100 unless the assistant speaks).

    Answers share a sequence as long as each one's prompt begins with what was trained before. A template that
    rewrites earlier turns makes one sequence for each answer.
    """
    tokenized = Tokenized()
    turns_by_row = [answered_turns(row) for row in rows]
    encoded = encode_turns(tokenizer, list(chain.from_iterable(turns_by_row)), tokenized.counts)
    for index, (row, turns) in enumerate(zip(rows, turns_by_row, strict=True)):
        pairs: list[tuple[list[int], list[int]]] = []
        bad_rows: list[BadRow] = []
        for prompt, (answer,) in (next(encoded) for _ in turns):
            if isinstance(answer, BadRow):
                bad_rows.append(answer)
            else:
                pairs.append((prompt, answer))
        if bad_rows or not turns:
            tokenized.drop(index, bad_rows[0] if bad_rows else NO_ANSWER)
            continue
        sequences = join_turns(pairs)
        kept = [sequence for sequence in sequences if sequence.starts[0] < max_length]
        if not kept:
            tokenized.drop(index, PROMPT_TOO_LONG)
            continue
        if len(sequences) > 1:
            tokenized.counts[SPLIT] += 1
            tokenized.counts[PARTS] += len(sequences)
        tokenized.add(
            index,
            ({**row, "input_ids": one.ids[:max_length], "labels": one.labels[:max_length]} for one in kept),
            truncated=any(len(sequence.ids) > max_length for sequence in sequences),
            answers=len(turns),
            trained=sum(start < max_length for sequence in kept for start in sequence.starts),
        )
    _count_special_texts(tokenizer, tokenized, ("messages",))
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
            tokenized.drop(index, NO_TOKENS)
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


def describe_counts(counts: Counter[str]) -> list[str]:
    """What a user should know of `Tokenized.counts`, in sentences; nothing where every answer is trained from
    one sequence, as it stands.
    """
    lines = []
    if counts[ANSWERS_TRAINED] < counts[ANSWERS]:
        trained = f"{counts[ANSWERS_TRAINED]} of {counts[ANSWERS]}"
        lines.append(f"{trained} answers are trained: the others lie behind data.max_length")
    if counts[SPLIT]:
        lines.append(
            f"{counts[SPLIT]} conversations are {counts[PARTS]} sequences: before a later answer the chat "
            "template writes earlier turns otherwise, or their tokens are others"
        )
    known = {TRUNCATED, ANSWERS, ANSWERS_TRAINED, SPLIT, PARTS}
    return lines + [f"{count} {what}" for what, count in sorted(counts.items()) if what not in known]


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


def _contradicted(labels: list[bool], answers: list[list[int] | BadRow], room: int) -> set[tuple[int, ...]]:
    """The answers, cut to `room` tokens, that are labeled both good and bad."""
    if len(set(labels)) < 2:
        return set()
    good, bad = (
        {
            tuple(answer[:room])
            for label, answer in zip(labels, answers, strict=True)
            if label is kind and not isinstance(answer, BadRow)
        }
        for kind in (True, False)
    )
    return good & bad


def _prompt_parts(row: Row) -> tuple[object, ...]:
    """What the ids of a prompt depend on."""
    return row["prompt"], row.get("tools"), row.get("chat_template_kwargs")


def _count_special_texts(
    tokenizer: PreTrainedTokenizerBase, tokenized: Tokenized, columns: Iterable[str]
) -> None:
    """Count the rows that hold the text of a special token, by the first that they hold."""
    pattern, mend = special_text_pattern(tokenizer), None
    for row in dict(zip(tokenized.indices, tokenized.rows, strict=True)).values():
        for message in chain.from_iterable(row[column] for column in columns):
            if not pattern.search(message["content"]):
                continue
            mend = mend or answer_mender(tokenizer)
            (mended,) = mend([message])
            if found := pattern.search(mended["content"]):
                tokenized.counts[f"rows hold {found[0]} in their text, and it is read as the token"] += 1
                break
