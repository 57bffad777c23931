"""Texts encoded in parts have the ids of the whole texts with any tokenizer; no part is encoded twice."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from small_tokenizers import ODD, odd_tokenizer

from alignment_lab.data import encoding, tokenization

FRAGMENTS = [
    "Hello",
    " it is",
    "IS",
    "<s>",
    "</s>",
    "</",
    "<|x|>",
    "<|",
    "|>",
    "\n",
    "\n\n",
    " ",
    "  ",
    "é模",
    "<|im_start|>",
    "<|im_end|>",
    "",
]


def assert_the_same_ids(tokenizer):
    rng = random.Random(0)
    texts = ["".join(rng.choices(FRAGMENTS, k=rng.randint(0, 9))) for _ in range(1000)]
    # a call with truncation leaves the backend set to truncate
    tokenizer(texts, truncation=True, max_length=2)
    prompts = [(texts[index], texts[index + 1 : index + 1 + rng.randint(0, 2)]) for index in range(998)]
    encoded = encoding.answer_encoder(tokenizer)(prompts)
    before = encoding.encode_rendered(tokenizer, texts[:998])
    assert [prompt for prompt, _ in encoded] == before
    pairs = [(prompt, answer) for prompt, answers in prompts for answer in answers]
    wholes = encoding.encode_rendered(tokenizer, [prompt + answer for prompt, answer in pairs])
    alone = encoding.encode_rendered(tokenizer, [answer for _, answer in pairs])
    starts = [ids for ids, (_, answers) in zip(before, encoded, strict=True) for _ in answers]
    assert [answer for _, answers in encoded for answer in answers] == [
        whole[len(start) :] if whole[: len(start)] == start else other
        for start, whole, other in zip(starts, wholes, alone, strict=True)
    ]
    tokenizer(texts, truncation=True, max_length=2)
    documents = encoding.encode_documents(tokenizer, texts)
    assert documents == tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("kind", ODD)
def test_a_text_in_parts_has_the_ids_of_the_whole_text(kind):
    assert_the_same_ids(odd_tokenizer(kind))


def test_a_text_in_parts_has_the_ids_of_the_whole_text_for_common_tokenizers(any_tokenizer):
    assert_the_same_ids(any_tokenizer)


def test_a_prompt_is_encoded_once_for_both_answers(tokenizer, monkeypatch):
    """A prompt of 40,000 characters with two short answers: encoding it three times would be 120,000."""
    encoded = []
    answers = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    row = {"prompt": [{"role": "user", "content": "a word " * 5714}], **answers}

    def recording_backend(tokenizer):
        def encode_batch_fast(texts, **settings):
            encoded.extend(texts)
            return tokenizer.backend_tokenizer.encode_batch_fast(texts, **settings)

        return SimpleNamespace(encode_batch_fast=encode_batch_fast)

    monkeypatch.setattr(encoding, "_fast_backend", recording_backend)
    tokenization.tokenize_pairs(tokenizer, [row], 10_000)
    assert 40_000 < sum(map(len, encoded)) < 41_000
