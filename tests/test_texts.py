"""Texts are packed into blocks: no token is lost, and each document ends with EOS."""

from __future__ import annotations

import random
from itertools import chain

import pytest
from small_tokenizers import other_tokenizer, real_rows

from alignment_lab.config import Format
from alignment_lab.data import DataError, count_tokens, tokenization
from alignment_lab.data.blocks import pack_best_fit, split_document
from alignment_lab.data.reasons import BadRow, Reason

TEXTS = [{"text": "Hello it is " * number + "é"} for number in (1, 3, 2, 60, 7, 1, 25, 2)]


def documents_of(blocks) -> list[list[int]]:
    """The documents of all blocks."""
    split = []
    for row in blocks:
        ids = iter(row["input_ids"])
        split += [[next(ids) for _ in range(length)] for length in row["seq_lengths"]]
        assert next(ids, None) is None
    return split


def test_short_texts_share_blocks_and_each_is_whole(any_tokenizer):
    tokenized = tokenization.tokenize_texts(any_tokenizer, TEXTS, 512)
    blocks = tokenized.rows
    expected = [[*any_tokenizer(row["text"])["input_ids"], any_tokenizer.eos_token_id] for row in TEXTS]
    assert sorted(documents_of(blocks)) == sorted(expected)
    assert not tokenized.dropped
    assert all(count_tokens(row) == sum(row["seq_lengths"]) <= 512 for row in blocks)
    assert sum(map(count_tokens, blocks)) == sum(map(len, expected))
    assert blocks == tokenization.tokenize_texts(any_tokenizer, TEXTS, 512).rows


@pytest.mark.parametrize("limit", [8, 9, 16, 31])
def test_a_longer_text_is_split_and_no_token_is_lost(limit, tokenizer):
    for row in TEXTS:
        blocks = tokenization.tokenize_texts(tokenizer, [row], limit).rows
        whole = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        assert sorted(documents_of(blocks)) == sorted(split_document(whole, limit))
        assert all(count_tokens(block) <= limit for block in blocks)


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize("limit", [2, 3, 8])
def test_chunks_cover_the_document_and_each_has_a_token_to_predict(length, limit):
    """With chunks of at most two tokens, an odd length leaves one token over: [0, 1], [2].

    From three on it never does.
    """
    chunks = split_document(list(range(length)), limit)
    assert list(chain.from_iterable(chunks)) == list(range(length))
    assert all(len(chunk) <= limit for chunk in chunks)
    assert limit == 2 or length == 1 or min(map(len, chunks)) > 1
    assert len(chunks) == -(-length // limit)


def best_fit_by_hand(lengths: list[int], limit: int) -> int:
    """The number of groups of best fit, computed the slow way: every group is looked at."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else limit) - length)
    return len(spaces)


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_packs_everything_once_and_as_tightly_as_by_hand(seed):
    draw = random.Random(seed)
    limit = draw.choice([8, 64, 1024])
    lengths = [draw.randint(1, limit) for _ in range(draw.randint(0, 300))]
    groups = pack_best_fit(lengths, limit)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in group) <= limit for group in groups)
    assert len(groups) == best_fit_by_hand(lengths, limit)
    assert groups == sorted(sorted(group) for group in groups)


def test_eos_is_not_added_to_a_text_that_ends_with_it():
    """Tokenizers like T5's add EOS themselves, and a text may contain it."""
    tokenizer = other_tokenizer(None)
    (row,) = tokenization.tokenize_texts(tokenizer, [{"text": "Hello</s>"}], 64).rows
    assert row["input_ids"] == tokenizer("Hello</s>")["input_ids"]
    assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_a_text_without_a_token_is_counted():
    """Only EOS is left of it, and nothing precedes it."""
    tokenized = tokenization.tokenize_texts(other_tokenizer(None), [{"text": "Hello"}, {"text": "</s>"}], 64)
    assert [len(row["seq_lengths"]) for row in tokenized.rows] == [1]
    assert tokenized.dropped == [(1, BadRow(Reason.no_tokens, "`text` has no tokens"))]


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = other_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"model\.path: its tokenizer has no token that ends a text"):
        tokenization.tokenize_texts(tokenizer, TEXTS, 64)


def test_real_texts_fill_their_blocks(tokenizer):
    """300 web pages: over 98 % of the blocks is used, and every token of every page is there."""
    rows = real_rows("c4_demo.jsonl", Format.text, 300)
    blocks = tokenization.tokenize_texts(tokenizer, rows, 1024).rows
    tokens = sum(len(ids) + 1 for ids in tokenizer([row["text"] for row in rows])["input_ids"])
    assert sum(map(count_tokens, blocks)) == tokens
    assert tokens / (1024 * len(blocks)) > 0.98
