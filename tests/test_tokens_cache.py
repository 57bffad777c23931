"""Rows are tokenized once: then they come from a file whose digest matches, or the file is written again."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from small_tokenizers import other_tokenizer, real_rows

from alignment_lab.config import Format, Truncation
from alignment_lab.data import token_cache, tokenization, tokenize_cached
from alignment_lab.data.token_rows import TOKEN_COLUMNS, Tokenized
from alignment_lab.models.tokenizer import tokenizer_digest

MESSAGES = [
    [
        {"role": "user", "content": "What is it? " * number},
        {"role": "assistant", "content": "It is Paris. " * number},
    ]
    for number in range(1, 9)
]
PAIRS = [
    {
        "prompt": chat[:1],
        "chosen": chat[1:],
        "rejected": [{"role": "assistant", "content": "No."}],
        "answer": ["Paris", "é"],
        "margin": 0.1,
    }
    for chat in MESSAGES
]
LABELED = [
    {"prompt": chat[:1], "completion": chat[1:], "label": index % 2 == 0}
    for index, chat in enumerate(MESSAGES)
]
CHATS = [{"messages": chat, "answer": ["x"]} for chat in MESSAGES]
TEXTS = [{"text": chat[0]["content"]} for chat in MESSAGES]
KINDS = {
    "pairs": (tokenization.tokenize_pairs, PAIRS),
    "labeled answers": (tokenization.tokenize_unpaired, LABELED),
    "conversations": (tokenization.tokenize_conversations, CHATS),
    "texts": (tokenization.tokenize_texts, TEXTS),
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture(scope="module")
def small():
    return other_tokenizer("zephyr")


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def fail_if_called(*_):
    raise AssertionError("tokenized again")


def from_cache(tokenize, tokenizer, rows, limit=64, **changes):
    """What the cache returns where nothing may be tokenized; the key has the name of the real function."""
    fail_if_called.__qualname__ = tokenize.__qualname__
    return tokenize_cached(
        fail_if_called, tokenizer, changes.get("digest", tokenizer_digest(tokenizer)), rows, limit
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [8, 64, 1000])  # every row dropped, some dropped and truncated, all whole
def test_cached_rows_are_the_tokenized_rows(kind, limit, cache, small):
    """Rows with all of their columns, ids as lists of Python integers, and the same counts."""
    tokenize, rows = KINDS[kind]
    expected = tokenize(small, rows, limit)
    for tokenized in (
        tokenize_cached(tokenize, small, tokenizer_digest(small), rows, limit),
        from_cache(tokenize, small, rows, limit),
    ):
        assert tokenized == expected
        assert list(map(tuple, tokenized.counted)) == expected.counted
        assert type(tokenized.counts) is Counter
        assert [list(row) for row in tokenized.rows] == [list(row) for row in expected.rows]
        assert all(
            type(row[name]) is list and type(row[name][0]) is int
            for row in tokenized.rows
            for name in TOKEN_COLUMNS
            if name in row
        )
    assert len(files(cache)) == 1


def test_an_empty_list_of_rows_is_cached_too(cache, small):
    assert (
        tokenize_cached(tokenization.tokenize_pairs, small, "x", [], 64)
        == from_cache(tokenization.tokenize_pairs, small, [], digest="x")
        == Tokenized()
    )


CHANGES = {
    "a row": lambda rows, tokenizer: (
        tokenization.tokenize_pairs,
        tokenizer,
        "digest",
        [*rows[:-1], {**rows[-1], "rejected": rows[0]["chosen"]}],
        64,
    ),
    "one row less": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "digest", rows[:-1], 64),
    "the order": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "digest", rows[::-1], 64),
    "the length": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "digest", rows, 65),
    "which end is cut": lambda rows, tokenizer: (
        tokenization.tokenize_pairs,
        tokenizer,
        "digest",
        rows,
        64,
        Truncation.prompt,
    ),
    "the tokenizer": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "other", rows, 64),
    "the function": lambda rows, tokenizer: (tokenize_under_another_name, tokenizer, "digest", rows, 64),
    "the EOS token": lambda rows, tokenizer: (
        tokenization.tokenize_pairs,
        other_tokenizer("zephyr", eos="<|end|>"),
        "digest",
        rows,
        64,
    ),
    "the template": lambda rows, tokenizer: (
        tokenization.tokenize_pairs,
        other_tokenizer("chatml"),
        "digest",
        rows,
        64,
    ),
}


def tokenize_under_another_name(tokenizer, rows, *limit):
    return tokenization.tokenize_pairs(tokenizer, rows, *limit)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_can_change_a_token_has_an_entry_of_its_own(change, cache, small):
    """And the earlier entry stays, to be found again."""
    tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    tokenize, tokenizer, digest, rows, *limit = CHANGES[change](PAIRS, small)
    assert tokenize_cached(tokenize, tokenizer, digest, rows, *limit) == tokenize(tokenizer, rows, *limit)
    assert len(files(cache)) == 2
    assert from_cache(
        tokenization.tokenize_pairs, small, PAIRS, digest="digest"
    ) == tokenization.tokenize_pairs(small, PAIRS, 64)


def test_another_version_of_the_code_has_an_entry_of_its_own(cache, small, tmp_path, monkeypatch):
    tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    edited = tmp_path / "tokenize.py"
    edited.write_text("# another version")
    monkeypatch.setattr(token_cache, "SOURCE_FILES", (edited,))
    with pytest.raises(AssertionError, match="tokenized again"):
        from_cache(tokenization.tokenize_pairs, small, PAIRS, digest="digest")


def test_a_template_that_writes_the_date_is_cached_for_a_day(cache, monkeypatch):
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    keys = set()
    for day in ("2025-01-01", "2025-01-01", "2025-01-02"):
        monkeypatch.setattr(token_cache, "date", type("Day", (), {"today": lambda day=day: day}))
        keys.add(token_cache._cache_key(tokenization.tokenize_pairs, tokenizer, "digest", PAIRS, 64))
    assert len(keys) == 2


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES = {
    "cut short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "one bit in the ids": flip_last_bit,
    "one bit in the header": lambda content: flip_last_bit(content[:9]) + content[9:],
    "something else": lambda content: b"no tokens",
    "more bytes at the end": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_written_again_silently(damage, cache, small, capfd):
    expected = tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    (file,) = files(cache)
    content = file.read_bytes()
    file.write_bytes(DAMAGES[damage](content))
    assert tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64) == expected
    assert files(cache) == [file] and file.read_bytes() == content
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_beside_a_good_one_is_removed(cache, small):
    expected = tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    (file,) = files(cache)
    other = file.with_name(f"{'0' * 64}.safetensors")
    other.write_bytes(file.read_bytes())
    assert from_cache(tokenization.tokenize_pairs, small, PAIRS, digest="digest") == expected
    assert files(cache) == [file]


def test_a_partial_file_of_a_killed_process_is_not_read(cache, small):
    """A file is written under a hidden name, and renamed when it is complete."""
    tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    (file,) = files(cache)
    file.rename(file.with_name(f".{file.name}.1.partial"))
    assert tokenize_cached(
        tokenization.tokenize_pairs, small, "digest", PAIRS, 64
    ) == tokenization.tokenize_pairs(small, PAIRS, 64)
    assert len(files(cache)) == 2


def test_a_folder_that_cannot_be_written_costs_time_but_does_not_fail(tmp_path, monkeypatch, small):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "file"))
    assert tokenize_cached(
        tokenization.tokenize_pairs, small, "digest", PAIRS, 64
    ) == tokenization.tokenize_pairs(small, PAIRS, 64)


def test_a_deleted_folder_is_created_again(cache, small):
    expected = tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    shutil.rmtree(cache)
    assert tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64) == expected
    assert len(files(cache)) == 1


def tokenize_repeatedly(number: int) -> bool:
    """In a process of its own: write the same rows many times, each time as if the cache were empty."""
    small = other_tokenizer("zephyr")
    rows = tokenization.tokenize_pairs(small, PAIRS, 64)
    for _ in range(20):
        token_cache._write_arrays(
            token_cache.cache_directory() / "tokens" / "key",
            token_cache._tokenize_to_arrays(lambda rows: tokenization.tokenize_pairs(small, rows, 64), PAIRS),
        )
        arrays = token_cache._read_arrays(token_cache.cache_directory() / "tokens" / "key")
        if arrays is None or token_cache._join_rows(PAIRS, arrays) != rows:
            return False
    return tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64) == rows


def test_processes_that_tokenize_the_same_rows_at_once_do_not_interfere(cache):
    """Each reads what it or another process wrote, and always finds a complete file."""
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(tokenize_repeatedly, range(3)) == [True] * 3
    assert len(files(cache)) == 2


def test_a_column_that_the_cache_would_lose_is_an_error(cache, small):
    def tokenize_with_more_ids(tokenizer, rows, *limit):
        tokenized = tokenization.tokenize_pairs(tokenizer, rows, *limit)
        return replace(tokenized, rows=[{**row, "more_ids": [1]} for row in tokenized.rows])

    with pytest.raises(AssertionError, match="TOKEN_COLUMNS"):
        tokenize_cached(tokenize_with_more_ids, small, "digest", PAIRS, 64)


def test_real_rows_are_cached(cache, tokenizer):
    rows = real_rows("dpo_en_demo.json", Format.preference, 100)
    expected = tokenization.tokenize_pairs(tokenizer, rows, 512)
    digest = tokenizer_digest(tokenizer)
    assert (
        tokenize_cached(tokenization.tokenize_pairs, tokenizer, digest, rows, 512)
        == expected
        == from_cache(tokenization.tokenize_pairs, tokenizer, rows, 512)
    )
