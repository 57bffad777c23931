"""Rows to token ids under TRL's column names; exact where the answer follows the prompt.

The prompt is encoded by itself, as at generation; the answer is what follows it in the text of the whole
conversation. An answer ends with the template's stop token, which is trained, and with nothing after it. A
text goes through no template: it ends with the tokenizer's EOS. Knows columns and turns (see `turns`), no
model and no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING

from ..config import Format, Truncation
from .blocks import pack_best_fit, split_document
from .encoding import encode_documents, special_text_pattern
from .prompts import is_open
from .reasons import BadRow, DataError, Reason
from .rows import Row
from .templates import answer_mender
from .token_rows import PARTS, SPLIT, Tokenized
from .turns import BATCH_SIZE, Turn, answered_turns, encode_turns, join_turns, prompt_shortener

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_TOO_LONG = BadRow(Reason.prompt_too_long, "the prompt fills data.max_length")
NO_TOKENS = BadRow(Reason.no_tokens, "`text` has no tokens")
NO_ANSWER = BadRow(Reason.no_tokens, "no turn of the assistant is trained")
EQUAL_TOKENS = BadRow(Reason.equal_tokens, "`chosen` equals `rejected` as the template writes them")
EQUAL_ONCE_CUT = BadRow(Reason.equal_tokens, "`chosen` equals `rejected` once cut at data.max_length")


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int,
    truncation: Truncation = Truncation.answer,
) -> Tokenized:
    """Preference rows with prompt_ids, chosen_ids and rejected_ids.

    A longer answer is cut at its end so that prompt and answer fill max_length; a prompt that leaves no room
    drops the row, and so do answers that are equal once they are cut. With `truncation` prompt, the prompt
    loses its beginning first: see `prompt_shortener`.
    """
    tokenized, shorten = Tokenized(), prompt_shortener(tokenizer, max_length, truncation)
    turns = [
        Turn(row, row["prompt"], [row["chosen"], row["rejected"]], is_open(row["prompt"])) for row in rows
    ]
    encoded = encode_turns(tokenizer, turns, tokenized.counts)
    for index, (row, (prompt, answers)) in enumerate(zip(rows, encoded, strict=True)):
        chosen, rejected = answers
        head, start = shorten(prompt, max(map(_length, answers)))
        shorter = prompt[:head] + prompt[start:]
        room = max_length - len(shorter)
        if isinstance(chosen, BadRow) or isinstance(rejected, BadRow):
            tokenized.drop(index, chosen if isinstance(chosen, BadRow) else rejected)  # type: ignore[arg-type]
        elif room < 1:
            tokenized.drop(index, PROMPT_TOO_LONG)
        elif chosen[:room] == rejected[:room]:
            tokenized.drop(index, EQUAL_TOKENS if chosen == rejected else EQUAL_ONCE_CUT)
        else:
            ids = {"prompt_ids": shorter, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}
            truncated = len(shorter) < len(prompt) or max(len(chosen), len(rejected)) > room
            tokenized.count_shortened(len(prompt), len(shorter))
            tokenized.add(index, [{**row, **ids}], truncated, answers=2, trained=2)
    _count_special_texts(tokenizer, tokenized, ("prompt", "chosen", "rejected"))
    return tokenized


def tokenize_unpaired(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int,
    truncation: Truncation = Truncation.answer,
) -> Tokenized:
    """Labeled answers with `prompt_ids` and `completion_ids`, cut like pairs; `label` is kept.

    Neighbors with one prompt, as the halves of a pair are, are dropped where a good and a bad answer are
    equal once they are cut.
    """
    tokenized, shorten = Tokenized(), prompt_shortener(tokenizer, max_length, truncation)
    groups = [list(group) for _, group in groupby(enumerate(rows), key=lambda row: _prompt_parts(row[1]))]
    turns = []
    for group in groups:
        row = group[0][1]
        completions = [row["completion"] for _, row in group]  # the prompt is encoded once for all of them
        turns.append(Turn(row, row["prompt"], completions, is_open(row["prompt"])))
    encoded = encode_turns(tokenizer, turns, tokenized.counts)
    for group, (prompt, answers) in zip(groups, encoded, strict=True):
        head, start = shorten(prompt, max(map(_length, answers)))  # one for all, as answers are compared
        shorter = prompt[:head] + prompt[start:]
        room = max_length - len(shorter)
        contradicted = _contradicted([row["label"] for _, row in group], answers, room)
        for (index, row), answer in zip(group, answers, strict=True):
            if isinstance(answer, BadRow):
                tokenized.drop(index, answer)
            elif room < 1:
                tokenized.drop(index, PROMPT_TOO_LONG)
            elif contradicted and tuple(answer[:room]) in contradicted:
                tokenized.drop(index, EQUAL_ONCE_CUT if len(answer) > room else EQUAL_TOKENS)
            else:
                ids = {"prompt_ids": shorter, "completion_ids": answer[:room]}
                truncated = len(shorter) < len(prompt) or len(answer) > room
                tokenized.count_shortened(len(prompt), len(shorter))
                tokenized.add(index, [{**row, **ids}], truncated, answers=1, trained=1)
    _count_special_texts(tokenizer, tokenized, ("prompt", "completion"))
    return tokenized


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int,
    truncation: Truncation = Truncation.answer,
) -> Tokenized:
    """Conversations with `input_ids` and `labels` (-100 unless the assistant speaks).

    Answers share a sequence as long as each one's prompt begins with what was trained before. A template that
    rewrites earlier turns makes one sequence for each answer. What stands before a sequence's last answer is
    its prompt where `truncation` is prompt; an answer that loses its beginning is not trained.
    """
    tokenized, shorten = Tokenized(), prompt_shortener(tokenizer, max_length, truncation)
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
        whole = join_turns(pairs)
        sequences = [sequence.shortened(shorten) for sequence in whole]
        kept = [sequence for sequence in sequences if sequence.starts[0] < max_length]
        if not kept:
            tokenized.drop(index, PROMPT_TOO_LONG)
            continue
        tokenized.count_shortened(*(sum(len(each.ids) for each in group) for group in (whole, sequences)))
        if len(sequences) > 1:
            tokenized.counts[SPLIT] += 1
            tokenized.counts[PARTS] += len(sequences)
        tokenized.add(
            index,
            ({**row, "input_ids": one.ids[:max_length], "labels": one.labels[:max_length]} for one in kept),
            truncated=any(len(sequence.ids) > max_length for sequence in whole),
            answers=len(turns),
            trained=sum(start < max_length for sequence in kept for start in sequence.starts),
        )
    _count_special_texts(tokenizer, tokenized, ("messages",))
    return tokenized


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int,
    truncation: Truncation = Truncation.answer,
) -> Tokenized:
    """Blocks of at most max_length tokens: `input_ids`, and `seq_lengths`, the lengths of the documents.

    A document longer than max_length is split into several, and nothing is truncated; a block takes those
    that fit together, and has no other column.
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


def _length(answer: list[int] | BadRow) -> int:
    return 0 if isinstance(answer, BadRow) else len(answer)


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
