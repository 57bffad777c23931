"""Texts become blocks: every token of every document is in one of them, closed, and beside others."""

from __future__ import annotations

import random
from itertools import chain

import pytest
from small_tokenizers import other_tokenizer, real_rows

from alignment_lab.config import Format
from alignment_lab.data import DataError, count_tokens, tokenization
from alignment_lab.data.blocks import pack_best_fit, split_document

TEXTS = [{"text": "Hello it is " * number + "é"} for number in (1, 3, 2, 60, 7, 1, 25, 2)]


def documents(found) -> list[list[int]]:
    """The documents of all blocks."""
    parted = []
    for row in found:
        ids = iter(row["input_ids"])
        parted += [[next(ids) for _ in range(length)] for length in row["seq_lengths"]]
        assert next(ids, None) is None
    return parted


def test_short_texts_share_blocks_and_each_is_whole(any_tokenizer):
    found, counts = tokenization.tokenize_texts(any_tokenizer, TEXTS, 512)
    expected = [[*any_tokenizer(row["text"])["input_ids"], any_tokenizer.eos_token_id] for row in TEXTS]
    assert sorted(documents(found)) == sorted(expected)
    assert counts.total() == 0
    assert all(count_tokens(row) == sum(row["seq_lengths"]) <= 512 for row in found)
    assert sum(map(count_tokens, found)) == sum(map(len, expected))
    assert found == tokenization.tokenize_texts(any_tokenizer, TEXTS, 512)[0]


@pytest.mark.parametrize("limit", [8, 9, 16, 31])
def test_a_longer_text_is_cut_and_no_token_is_lost(limit, tokenizer):
    for row in TEXTS:
        found, _ = tokenization.tokenize_texts(tokenizer, [row], limit)
        whole = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        assert sorted(documents(found)) == sorted(split_document(whole, limit))
        assert all(count_tokens(block) <= limit for block in found)


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize("most", [2, 3, 8])
def test_pieces_follow_one_another_and_none_has_nothing_to_predict(length, most):
    """With pieces of at most two tokens an odd length leaves one over: [0, 1], [2]. From three on it never does."""
    cut = split_document(list(range(length)), most)
    assert list(chain.from_iterable(cut)) == list(range(length))
    assert all(len(piece) <= most for piece in cut)
    assert most == 2 or length == 1 or min(map(len, cut)) > 1
    assert len(cut) == -(-length // most)


def first_fit_by_hand(lengths: list[int], most: int) -> int:
    """How many groups best fit makes, the slow way: every group is looked at."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else most) - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_places_everything_once_and_as_tightly_as_by_hand(seed):
    draw = random.Random(seed)
    most = draw.choice([8, 64, 1024])
    lengths = [draw.randint(1, most) for _ in range(draw.randint(0, 300))]
    groups = pack_best_fit(lengths, most)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in group) <= most for group in groups)
    assert len(groups) == first_fit_by_hand(lengths, most)
    assert groups == sorted(sorted(group) for group in groups)


def test_a_text_that_the_tokenizer_closes_itself_is_not_closed_twice():
    """So do tokenizers of the T5 kind; and a text may quote the end."""
    tokenizer = other_tokenizer(None)
    (row,), _ = tokenization.tokenize_texts(tokenizer, [{"text": "Hello</s>"}], 64)
    assert row["input_ids"] == tokenizer("Hello</s>")["input_ids"]
    assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_a_text_without_a_token_is_counted():
    """All that is left of it is the end, which nothing predicts."""
    found, counts = tokenization.tokenize_texts(
        other_tokenizer(None), [{"text": "Hello"}, {"text": "</s>"}], 64
    )
    assert ([len(row["seq_lengths"]) for row in found], dict(counts)) == ([1], {"`text` has no tokens": 1})


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = other_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"model\.path: its tokenizer has no token that ends a text"):
        tokenization.tokenize_texts(tokenizer, TEXTS, 64)


def test_real_texts_fill_their_blocks(tokenizer):
    """300 web pages: over 98 of 100 places hold a token, and every token of every page is there."""
    rows = real_rows("c4_demo.jsonl", Format.text, 300)
    found, _ = tokenization.tokenize_texts(tokenizer, rows, 1024)
    tokens = sum(len(ids) + 1 for ids in tokenizer([row["text"] for row in rows])["input_ids"])
    assert sum(map(count_tokens, found)) == tokens
    assert tokens / (1024 * len(found)) > 0.98
