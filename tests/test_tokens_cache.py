"""Rows are tokenized once: a second time they come from a file that is what it says, or the file is made again."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import Counter
from pathlib import Path

import pytest
from small_tokenizers import other_tokenizer, real_rows

from alignment_lab.config import Format
from alignment_lab.data import tokenize_cached, token_cache, tokenization
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
LABELLED = [
    {"prompt": chat[:1], "completion": chat[1:], "label": place % 2 == 0}
    for place, chat in enumerate(MESSAGES)
]
CHATS = [{"messages": chat, "answer": ["x"]} for chat in MESSAGES]
TEXTS = [{"text": chat[0]["content"]} for chat in MESSAGES]
KINDS = {
    "pairs": (tokenization.tokenize_pairs, PAIRS),
    "labelled answers": (tokenization.tokenize_unpaired, LABELLED),
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


def never(*_):
    raise AssertionError("tokenized again")


def remembered(made_by, tokenizer, rows, limit=64, **changes):
    """What the cache gives where nothing may be tokenized; the function goes by the name of the real one."""
    never.__qualname__ = made_by.__qualname__
    return tokenize_cached(never, tokenizer, changes.get("digest", tokenizer_digest(tokenizer)), rows, limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [8, 64, 1000])  # every row dropped, some dropped and cut, all whole
def test_what_is_remembered_is_what_was_made(kind, limit, cache, small):
    """Rows with every column that they had, ids as plain lists of plain integers, and the same counts."""
    made_by, rows = KINDS[kind]
    expected, counts = made_by(small, rows, limit)
    for found, counted in (
        tokenize_cached(made_by, small, tokenizer_digest(small), rows, limit),
        remembered(made_by, small, rows, limit),
    ):
        assert (found, counted) == (expected, counts)
        assert type(counted) is Counter and dict(counted) == dict(counts)
        assert [list(row) for row in found] == [list(row) for row in expected]
        assert all(
            type(row[name]) is list and type(row[name][0]) is int
            for row in found
            for name in tokenization.TOKEN_COLUMNS
            if name in row
        )
    assert len(files(cache)) == 1


def test_no_rows_at_all_are_remembered_too(cache, small):
    assert (
        tokenize_cached(tokenization.tokenize_pairs, small, "x", [], 64)
        == remembered(tokenization.tokenize_pairs, small, [], digest="x")
        == ([], Counter())
    )


CHANGES = {
    "a row": lambda rows, tokenizer: (
        tokenization.tokenize_pairs,
        tokenizer,
        "digest",
        [*rows[:-1], {**rows[-1], "rejected": rows[0]["chosen"]}],
        64,
    ),
    "a row less": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "digest", rows[:-1], 64),
    "the order": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "digest", rows[::-1], 64),
    "the length": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "digest", rows, 65),
    "the tokenizer": lambda rows, tokenizer: (tokenization.tokenize_pairs, tokenizer, "other", rows, 64),
    "what is made": lambda rows, tokenizer: (by_another_name, tokenizer, "digest", rows, 64),
    "the tokenizer's end": lambda rows, tokenizer: (
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


def by_another_name(tokenizer, rows, limit):
    return tokenization.tokenize_pairs(tokenizer, rows, limit)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_can_change_a_token_has_a_place_of_its_own(change, cache, small):
    """And what was made before stays, to be found again."""
    tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    made_by, tokenizer, digest, rows, limit = CHANGES[change](PAIRS, small)
    assert tokenize_cached(made_by, tokenizer, digest, rows, limit) == made_by(tokenizer, rows, limit)
    assert len(files(cache)) == 2
    assert remembered(
        tokenization.tokenize_pairs, small, PAIRS, digest="digest"
    ) == tokenization.tokenize_pairs(small, PAIRS, 64)


def test_another_version_of_the_code_makes_its_own(cache, small, tmp_path, monkeypatch):
    tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    edited = tmp_path / "tokenize.py"
    edited.write_text("# another version")
    monkeypatch.setattr(token_cache, "SOURCE_FILES", (edited,))
    with pytest.raises(AssertionError, match="tokenized again"):
        remembered(tokenization.tokenize_pairs, small, PAIRS, digest="digest")


def test_a_template_that_writes_the_date_is_not_remembered_beyond_the_day(cache, monkeypatch):
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


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES = {
    "cut short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "one bit in the ids": flipped,
    "one bit in the header": lambda content: flipped(content[:9]) + content[9:],
    "something else": lambda content: b"no tokens",
    "more behind it": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again_and_nobody_notices(damage, cache, small, capfd):
    expected = tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    (file,) = files(cache)
    content = file.read_bytes()
    file.write_bytes(DAMAGES[damage](content))
    assert tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64) == expected
    assert files(cache) == [file] and file.read_bytes() == content
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_beside_a_whole_one_is_removed(cache, small):
    expected = tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    (file,) = files(cache)
    other = file.with_name(f"{'0' * 64}.safetensors")
    other.write_bytes(file.read_bytes())
    assert remembered(tokenization.tokenize_pairs, small, PAIRS, digest="digest") == expected
    assert files(cache) == [file]


def test_what_a_killed_process_left_is_not_read(cache, small):
    """It writes a hidden neighbour first; the name of a whole file is given to it last."""
    tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    (file,) = files(cache)
    file.rename(file.with_name(f".{file.name}.1.partial"))
    assert tokenize_cached(
        tokenization.tokenize_pairs, small, "digest", PAIRS, 64
    ) == tokenization.tokenize_pairs(small, PAIRS, 64)
    assert len(files(cache)) == 2


def test_a_folder_that_cannot_be_written_costs_the_time_and_not_the_run(tmp_path, monkeypatch, small):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "file"))
    assert tokenize_cached(
        tokenization.tokenize_pairs, small, "digest", PAIRS, 64
    ) == tokenization.tokenize_pairs(small, PAIRS, 64)


def test_a_deleted_folder_is_made_again(cache, small):
    expected = tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64)
    shutil.rmtree(cache)
    assert tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64) == expected
    assert len(files(cache)) == 1


def built(number: int) -> bool:
    """In a process of its own: the same rows, many times, each time as if nothing were there yet."""
    small = other_tokenizer("zephyr")
    rows = tokenization.tokenize_pairs(small, PAIRS, 64)
    for _ in range(20):
        token_cache._write_arrays(
            token_cache.cache_directory() / "tokens" / "key",
            token_cache._tokenize_to_arrays(tokenization.tokenize_pairs, small, PAIRS, 64),
        )
        found = token_cache._read_arrays(token_cache.cache_directory() / "tokens" / "key")
        if found is None or token_cache._join_rows(PAIRS, found) != rows:
            return False
    return tokenize_cached(tokenization.tokenize_pairs, small, "digest", PAIRS, 64) == rows


def test_processes_that_make_the_same_tokens_at_once_do_not_disturb_each_other(cache):
    """Each reads what it or another wrote between any two of its own steps, and finds it whole."""
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(built, range(3)) == [True] * 3
    assert len(files(cache)) == 2


def test_a_column_that_would_be_lost_is_not_kept_silently(cache, small):
    def more(tokenizer, rows, limit):
        made, counts = tokenization.tokenize_pairs(tokenizer, rows, limit)
        return [{**row, "more_ids": [1]} for row in made], counts

    with pytest.raises(AssertionError, match="TOKEN_COLUMNS"):
        tokenize_cached(more, small, "digest", PAIRS, 64)


def test_real_rows_are_remembered(cache, tokenizer):
    rows = real_rows("dpo_en_demo.json", Format.preference, 100)
    expected = tokenization.tokenize_pairs(tokenizer, rows, 512)
    digest = tokenizer_digest(tokenizer)
    assert (
        tokenize_cached(tokenization.tokenize_pairs, tokenizer, digest, rows, 512)
        == expected
        == remembered(tokenization.tokenize_pairs, tokenizer, rows, 512)
    )
