"""The cache returns what was scored, for these ids and no others, after kills, damage and concurrent work.

The scores here are a formula of the ids, so that every returned number can be checked: the cache knows no
model.
"""

from __future__ import annotations

import collections
import errno
import fcntl
import json
import math
import mmap
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from alignment_lab.engine import reference_cache, reference_shard
from alignment_lab.engine.reference_cache import (
    Example,
    FetchResult,
    ReferenceCache,
    check_agreement,
    example_key,
    plan_blocks,
)
from alignment_lab.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def formula(example: Example) -> np.ndarray:
    """-(sum of the prompt + position * id) / 7, which is different for any two examples of these tests."""
    prompt, completion = example
    return np.array(
        [-(sum(prompt) + position * token) / 7 for position, token in enumerate(completion, start=1)],
        np.float32,
    )


class Scorer:
    """`score` by the formula; records the blocks that it was given."""

    def __init__(self) -> None:
        self.blocks: list[list[Example]] = []

    def __call__(self, block):
        self.blocks.append(list(block))
        return [formula(example) for example in block]

    @property
    def examples(self) -> list[Example]:
        return [example for block in self.blocks for example in block]


def make_examples(count: int, seed: int = 0) -> list[Example]:
    """Pairs that share a prompt, like preference rows; every completion is different."""
    draw = random.Random(seed)
    prompts = [draw.choices(range(50000), k=draw.randint(0, 30)) for _ in range(count // 2)]
    return [
        (prompt, [seed * count + row, *draw.choices(range(50000), k=draw.randint(0, 40))])
        for row, prompt in enumerate(prompts * 2)
    ]


def all_equal(fetched: FetchResult, examples: list[Example]) -> bool:
    """Bit for bit."""
    pairs = zip(fetched.logps, examples, strict=True)
    return all(row.dtype == np.float32 and np.array_equal(row, formula(example)) for row, example in pairs)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".safetensors"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "store"


@pytest.fixture
def no_fsync(monkeypatch):
    """For tests that write hundreds of times."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


# ---- the key


def test_a_key_hashes_the_lengths_and_the_ids():
    """int32, little-endian: the lengths 1 and 2, then 3, 4 and 5. The hash is plain blake2b."""
    words = "01000000 02000000 03000000 04000000 05000000".replace(" ", "")
    code = f"import hashlib; print(hashlib.blake2b(bytes.fromhex('{words}'), digest_size=16).hexdigest())"
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True).strip()
        == example_key([3], [4, 5]).hex()
    )


def test_a_key_changes_with_any_token_with_the_order_and_with_the_split():
    ids = [1, 2, 3, 4]
    cut = [(ids[:seam], ids[seam:]) for seam in range(5)]
    changed = [([1, 2], [3, 5]), ([0, 2], [3, 4]), ([2, 1], [3, 4]), ([3, 4], [1, 2])]
    longer = [
        ([1, 2], [3, 4, 0]),
        ([0, 1, 2], [3, 4]),
        ([1, 2, 0], [3, 4]),
        ([], []),
        ([0], []),
        ([], [0]),
        ([2], [1, 3, 4]),
    ]
    assert len({example_key(*example) for example in cut + changed + longer}) == 16


@pytest.mark.parametrize(
    "kind", [tuple, np.array, lambda ids: np.array(ids, np.int32), lambda ids: np.repeat(ids, 2)[::2]]
)
def test_a_key_does_not_depend_on_the_container_of_the_ids(kind):
    assert example_key(kind([5, 70000]), kind([1, 2])) == example_key([5, 70000], [1, 2])


# ---- hits and misses


def test_the_second_fetch_scores_nothing(folder):
    examples, score = make_examples(40), Scorer()
    cache = ReferenceCache(folder)
    first = cache.fetch(examples, score)
    assert (first.hits, first.scored, len(score.examples)) == (0, 40, 40)
    assert all_equal(first, examples)
    for opened in (cache, ReferenceCache(folder)):
        result = opened.fetch(examples, None)
        assert (result.hits, result.scored) == (40, 0)
        assert all_equal(result, examples)
    assert leftovers(folder) == []


def test_only_what_is_new_is_scored(folder):
    """A subset, a permutation, a superset and another set, each fetched by its own cache object."""
    examples = make_examples(40)
    ReferenceCache(folder).fetch(examples, Scorer())
    shuffled = random.Random(1).sample(examples, 40)
    others = make_examples(20, seed=1)
    for requested, new in (
        (examples[5:9], []),
        (shuffled, []),
        (others[:6] + shuffled, others[:6]),
        (others, others[6:]),
    ):
        score = Scorer()
        result = ReferenceCache(folder).fetch(requested, score)
        assert (result.hits, result.scored) == (len(requested) - len(new), len(new))
        assert sorted(score.examples) == sorted(new)
        assert all_equal(result, requested)


def test_an_example_that_comes_twice_is_scored_once(folder):
    examples, score = [([1], [2, 3]), ([1, 2], [3]), ([1], [2, 3])], Scorer()
    result = ReferenceCache(folder).fetch(examples, score)
    assert sorted(score.examples) == [([1], [2, 3]), ([1, 2], [3])]
    assert (result.hits, result.scored) == (1, 2)
    assert all_equal(result, examples)


def test_no_examples_create_no_folder(folder):
    assert ReferenceCache(folder).fetch([], None) == FetchResult([], 0, 0)
    assert not folder.exists()


@pytest.mark.parametrize("examples", [[([], [])], [([1], []), ([], [1]), ([], []), ([2], [])]])
def test_an_empty_completion_is_stored_too(folder, examples):
    assert all_equal(ReferenceCache(folder).fetch(examples, Scorer()), examples)
    assert all_equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_a_key_that_ends_in_zeros_works(folder, monkeypatch):
    """numpy's own bytes type would strip them."""
    monkeypatch.setattr(
        reference_cache,
        "example_key",
        lambda prompt, completion: completion[0].to_bytes(16, "big" if prompt else "little"),
    )
    examples = [([1], [1]), ([], [1]), ([1], [256]), ([], [256])]
    assert all_equal(ReferenceCache(folder).fetch(examples, Scorer()), examples)
    assert all_equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_two_folders_are_independent(tmp_path):
    """A shard that was copied from one to the other is not used there: its numbers are another model's."""
    examples = make_examples(4)
    ReferenceCache(tmp_path / "a").fetch(examples, Scorer())
    (tmp_path / "b").mkdir()
    for path in shards(tmp_path / "a"):
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    assert ReferenceCache(tmp_path / "b").fetch(examples, Scorer()).scored == 4
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / "else").mkdir()
    (tmp_path / "moved").rename(tmp_path / "else" / "a")
    assert all_equal(ReferenceCache(tmp_path / "else" / "a").fetch(examples, None), examples)


def test_a_shard_is_a_plain_safetensors_file(folder):
    examples = make_examples(6)
    ReferenceCache(folder).fetch(examples, Scorer())
    (path,) = shards(folder)
    tensors = load_file(path)
    assert {name: (tensor.dtype.name, tensor.ndim) for name, tensor in tensors.items()} == {
        "keys": ("uint8", 2),
        "ends": ("int64", 1),
        "logps": ("float32", 1),
    }
    assert {row.tobytes() for row in tensors["keys"]} == {example_key(*example) for example in examples}
    assert tensors["ends"][-1] == len(tensors["logps"]) == sum(len(completion) for _, completion in examples)


# ---- blocks


def test_blocks_hold_every_index_once_within_the_limit_longest_first():
    """Every prompt of these examples has two completions, and all of them fit: no prompt is in two blocks."""
    examples = make_examples(300)
    blocks = plan_blocks(examples, range(300), 256)
    assert sorted(index for block in blocks for index in block) == list(range(300))
    for block in blocks:
        prompts = {tuple(examples[index][0]) for index in block}
        assert sum(map(len, prompts)) + sum(len(examples[index][1]) for index in block) <= 256
    block_numbers = collections.defaultdict(set)
    for number, block in enumerate(blocks):
        for index in block:
            block_numbers[tuple(examples[index][0])].add(number)
    assert {len(numbers) for prompt, numbers in block_numbers.items() if prompt} == {1}
    longest = [max(sum(map(len, examples[index])) for index in block) for block in blocks]
    assert longest == sorted(longest, reverse=True)


def test_a_prompt_counts_once_in_a_block():
    """10 + 3 * 5 = 25 tokens fit into 25, and 24 hold two of the three completions."""
    examples = [([7] * 10, [index] * 5) for index in range(3)]
    assert plan_blocks(examples, range(3), 25) == [[0, 1, 2]]
    assert plan_blocks(examples, range(3), 24) == [[0, 1], [2]]


def test_an_example_is_never_split():
    """One token over the limit is a block alone, and so is every completion of a prompt larger than a
    block.
    """
    assert plan_blocks([([1] * 5, [2] * 6), ([1], [2])], range(2), 10) == [[0], [1]]
    assert plan_blocks([([1] * 50, [index]) for index in range(3)], range(3), 10) == [[0], [1], [2]]
    assert plan_blocks([([], [])], [0], 0) == [[0]]
    assert plan_blocks([], [], 10) == []


def test_score_and_progress_see_the_blocks(folder):
    examples, score, totals = make_examples(60), Scorer(), []

    def progress(steps):
        totals.append(len(steps))
        return steps

    ReferenceCache(folder).fetch(examples, score, progress=progress, block_tokens=200)
    assert totals == [len(score.blocks)] and len(score.blocks) > 5
    assert score.blocks == [
        [examples[index] for index in block] for block in plan_blocks(examples, range(60), 200)
    ]


# ---- invalid scores


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e300])  # the last is infinite in float32
def test_a_nonfinite_value_is_reported_by_row_and_never_stored(folder, value):
    """Rows 1 and 3; blocks that were scored before are kept, those after are not scored."""
    examples = [([row], [row] * (9 - row)) for row in range(6)]

    def score(block):
        return [np.where(row in (1, 3), value, formula(([row], ids)).astype(float)) for [row], ids in block]

    with pytest.raises(UserError, match=r"not finite for the examples 1, 3 \(counted from 0\)"):
        # 10 + 9 + 8 + 7 = 34 tokens: four examples, then two
        ReferenceCache(folder).fetch(examples, score, block_tokens=38)
    assert shards(folder) == []
    with pytest.raises(UserError, match="the examples 1 "):
        ReferenceCache(folder).fetch(examples, score, block_tokens=10)  # one by one
    scorer = Scorer()
    result = ReferenceCache(folder).fetch(examples, scorer)
    assert (result.hits, all_equal(result, examples)) == (1, True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda rows: rows[:-1],
        lambda rows: [row[:-1] for row in rows],
        lambda rows: [row[None] for row in rows],
    ],
)
def test_a_wrong_number_of_values_is_an_assertion_error(folder, damage):
    with pytest.raises(AssertionError):
        ReferenceCache(folder).fetch(
            make_examples(4), lambda block: damage([formula(example) for example in block])
        )
    assert shards(folder) == []


# ---- damage


def damaged_fetches(folder: Path, examples: list[Example], contents: list[bytes]) -> list[int]:
    """How many examples are scored again for each of these contents of the one shard.

    The numbers are always right.
    """
    scored = []
    for number, content in enumerate(contents):
        copy = folder.parent / str(number) / folder.name  # the same name: a shard belongs to it
        copy.mkdir(parents=True)
        (copy / "shard.safetensors").write_bytes(content)
        result = ReferenceCache(copy).fetch(examples, Scorer())
        assert all_equal(result, examples)
        assert all_equal(ReferenceCache(copy).fetch(examples, None), examples)
        assert (copy / "shard.safetensors").exists() == (result.scored == 0)
        assert (copy / "shard.safetensors.damaged").exists() == (result.scored > 0)
        scored.append(result.scored)
    return scored


@pytest.fixture(params=["read", "mapped"])
def shard(request, folder, monkeypatch, no_fsync):
    """(examples, the bytes of the shard that holds them)."""
    monkeypatch.setattr(reference_shard, "MIN_MAPPED_BYTES", 1 if request.param == "mapped" else 2**20)
    examples = [([1, 2], [3, 4, 5]), ([6], [7])]
    ReferenceCache(folder).fetch(examples, Scorer())
    return examples, shards(folder)[0].read_bytes()


def test_a_shard_cut_off_at_any_byte_is_scored_again(folder, shard):
    examples, content = shard
    assert set(damaged_fetches(folder, examples, [content[:size] for size in range(len(content))])) == {2}


def test_a_flipped_bit_anywhere_is_never_a_wrong_number(folder, shard):
    """In the tensors and in the digest it is always detected; elsewhere in the header it may mean nothing."""
    examples, content = shard
    draw = random.Random(0)
    flipped = [
        content[:byte] + bytes([content[byte] ^ 1 << draw.randrange(8)]) + content[byte + 1 :]
        for byte in range(len(content))
    ]
    scored = damaged_fetches(folder, examples, flipped)
    header = 8 + int.from_bytes(content[:8], "little")
    digest = json.loads(content[8:header])["__metadata__"]["digest"].encode()
    digest_start = content.index(digest)
    assert (
        set(scored[header:])
        == set(scored[digest_start : digest_start + len(digest)])
        == set(scored[:8])
        == {2}
    )


def test_any_other_content_is_renamed(folder, shard):
    examples, content = shard
    draw = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    payload = content[header:]

    def with_header(text: str | bytes) -> bytes:
        text = text.encode() if isinstance(text, str) else text
        return len(text).to_bytes(8, "little") + text + payload

    header_fields = json.loads(content[8:header])
    texts = [
        "",
        "[]",
        "null",
        "1",
        '"x"',
        "{}",
        "{",
        "[" * 10000,
        '{"keys": 1}',
        b"\xff\xfe",
        "{}" + " " * 5000,
    ]
    offsets = [
        [],
        [0],
        [0, 1, 2, 3],
        ["a", "b"],
        [None, None],
        [0, 10**30],
        [-5, -1],
        [0.5, 1.5],
        {},
        [[0], [1]],
    ]
    for name in ("keys", "ends", "logps"):
        texts += [
            json.dumps({**header_fields, name: {**header_fields[name], "data_offsets": value}})
            for value in offsets
        ]
        texts += [json.dumps({key: value for key, value in header_fields.items() if key != name})]
    texts += [
        json.dumps({**header_fields, "__metadata__": value})
        for value in (None, {}, [], {"digest": None}, {"digest": ""})
    ]
    garbage = [draw.randbytes(size) for size in (1, 7, 8, 9, 100, 5000)] + [
        b"\0" * 100,
        b"\xff" * 100,
        content[1:],
        content[8:],
    ]
    contents = [with_header(text) for text in texts] + garbage
    assert set(damaged_fetches(folder, examples, contents)) == {2}


def test_only_what_the_damaged_shard_held_is_scored_again(folder):
    examples, others = make_examples(20), make_examples(20, seed=1)
    ReferenceCache(folder).fetch(examples, Scorer())
    (path,) = shards(folder)
    ReferenceCache(folder).fetch(others, Scorer())
    path.write_bytes(path.read_bytes()[:-1])
    score = Scorer()
    result = ReferenceCache(folder).fetch(examples + others, score)
    assert (result.hits, sorted(score.examples)) == (20, sorted(examples))
    assert all_equal(result, examples + others)


def test_a_shard_of_another_process_is_found_and_one_that_disappears_is_no_error(folder, monkeypatch):
    examples = make_examples(20)
    cache, other = ReferenceCache(folder), ReferenceCache(folder)
    cache.fetch(examples[:10], Scorer())
    other.fetch(examples, Scorer())
    assert all_equal(cache.fetch(examples, None), examples)
    open_shard = reference_cache.open_shard

    def open_or_missing(path, *arguments, **options):
        if path == shards(folder)[0]:
            raise FileNotFoundError(path)
        return open_shard(path, *arguments, **options)

    monkeypatch.setattr(reference_cache, "open_shard", open_or_missing)
    assert all_equal(ReferenceCache(folder).fetch(examples, Scorer()), examples)


def test_a_shard_is_synced_before_it_has_its_name_and_its_name_after(folder, monkeypatch):
    """After a power loss there is the complete file under its name, or no such name."""
    syncs = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: syncs.append(
            (Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, len(shards(folder)))
        ),
    )
    ReferenceCache(folder).fetch(make_examples(2), Scorer())
    (path,) = shards(folder)
    assert syncs == [(f".{path.name}.{os.getpid()}.partial", 0), (folder.name, 1)]


# ---- disk full


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


DISK_FULL = (
    r"cannot be stored in \S+store \(No space left on device\): make it writable, with 0\.1 MB free, "
    r"or .*ALIGNMENT_LAB_CACHE"
)


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_is_one_sentence_and_keeps_what_was_stored(folder, monkeypatch, where):
    examples, others = make_examples(20), make_examples(20, seed=1)
    ReferenceCache(folder).fetch(examples, Scorer())
    with monkeypatch.context() as full:
        full.setattr(where, no_space)
        with pytest.raises(UserError, match=DISK_FULL):
            ReferenceCache(folder).fetch(examples + others, Scorer())
    assert leftovers(folder) == [] and len(shards(folder)) == 1
    found = ReferenceCache(folder).fetch(examples + others, Scorer())
    assert (found.hits, all_equal(found, examples + others)) == (20, True)


def test_a_write_that_stops_half_way_leaves_no_file(folder):
    """The kernel refuses what lies behind byte 4096 of any file: 10 000 tokens are 40 000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            ReferenceCache(folder).fetch([([1], [2] * 10_000)], Scorer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert leftovers(folder) == [] and shards(folder) == []


def test_a_full_disk_stops_at_once_and_keeps_the_blocks_before(folder, monkeypatch):
    """Each block is published by itself; the third cannot be, and nothing is scored after it."""
    examples, score, replace, renames = [([row], [row]) for row in range(6)], Scorer(), Path.replace, []

    def fail_third_time(self, target):
        renames.append(target)
        return no_space() if len(renames) == 3 else replace(self, target)

    monkeypatch.setattr("pathlib.Path.replace", fail_third_time)
    with pytest.raises(UserError, match=DISK_FULL):
        ReferenceCache(folder).fetch(examples, score, block_tokens=2, publish_seconds=0)
    assert (len(score.blocks), len(renames), len(shards(folder)), leftovers(folder)) == (3, 3, 2, [])
    result = ReferenceCache(folder).fetch(examples, Scorer())
    assert (result.hits, all_equal(result, examples)) == (2, True)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be stored in"):
        ReferenceCache(tmp_path / "file" / "store").fetch(make_examples(2), Scorer())


def test_a_read_only_cache_can_be_read(folder, monkeypatch):
    examples = make_examples(10)
    ReferenceCache(folder).fetch(examples, Scorer())
    for where in (
        "os.open",
        "pathlib.Path.mkdir",
        "pathlib.Path.replace",
        "pathlib.Path.rename",
        "fcntl.flock",
    ):
        monkeypatch.setattr(where, no_space)
    assert all_equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_a_disk_that_loses_data_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(reference_cache, "write_atomic", lambda path, content: path.write_bytes(content[:-1]))
    with pytest.raises(UserError, match="cannot be read back"):
        ReferenceCache(folder).fetch(make_examples(2), Scorer())


# ---- kills and concurrent processes


class Slow:
    """`score` that takes `seconds` for an example, and writes a line "PID ID" for each, in one write."""

    def __init__(self, log: Path, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, block):
        for example in block:
            time.sleep(self.seconds)
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {example[1][0]}\n")
        return [formula(example) for example in block]


def build(folder: Path, log: Path, done: multiprocessing.Queue, count: int, seconds: float) -> None:
    """The main function of a process: fetch, check, report."""
    examples = make_examples(count)
    result = ReferenceCache(folder).fetch(examples, Slow(log, seconds), publish_seconds=0.1, block_tokens=100)
    done.put((os.getpid(), all_equal(result, examples), result.hits, result.scored))


def wait(condition, seconds: float = 30.0):
    """The first true value of condition()."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


def test_four_processes_with_two_kills_score_everything_once(folder, tmp_path):
    """A kill loses what was scored in publish_seconds = 0.1, 10 examples at 10 ms, and the block that was at
    work, at most 100 tokens: 7 pairs of these; twice that is 48. One by one, the processes would score 4 *
    150 = 600.
    """
    log, count, context = tmp_path / "log", 150, multiprocessing.get_context("spawn")
    done = context.Queue()
    log.touch()
    processes = [context.Process(target=build, args=(folder, log, done, count, 0.01)) for _ in range(4)]
    for process in processes:
        process.start()

    def lines() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()]

    def scoring_process():
        return next(
            (
                process
                for process in processes
                if lines() and str(process.pid) == lines()[-1][0] and process.is_alive()
            ),
            None,
        )

    for part in (40, 80):
        wait(lambda part=part: len(lines()) >= part)
        victim = wait(scoring_process)
        victim.kill()
        victim.join()
    results = [done.get(timeout=30) for _ in range(2)]
    for process in processes:
        process.join(30)
    assert sorted(process.exitcode for process in processes) == [-9, -9, 0, 0]
    assert all(right for _, right, _, _ in results)
    assert {scored for *_, scored in results} > {0}  # of the two who live, one found all that it wanted
    assert len({pid for pid, _ in lines()}) == 3
    assert len({place for _, place in lines()}) == count
    assert count <= len(lines()) <= count + 48
    assert all_equal(ReferenceCache(folder).fetch(make_examples(count), None), make_examples(count))


def test_after_an_interruption_only_the_rest_is_scored(folder):
    """After any error while scoring, Ctrl-C too, what was scored is published."""
    examples, before = make_examples(60), Scorer()

    def interrupted(block):
        if len(before.blocks) == 3:
            raise KeyboardInterrupt
        return before(block)

    with pytest.raises(KeyboardInterrupt):
        ReferenceCache(folder).fetch(examples, interrupted, block_tokens=100)
    assert len(shards(folder)) == 1
    after = Scorer()
    result = ReferenceCache(folder).fetch(examples, after, block_tokens=100)
    assert sorted(before.examples + after.examples) == sorted(examples)
    assert (result.hits, all_equal(result, examples)) == (len(before.examples), True)


def test_results_are_published_at_intervals(folder, monkeypatch):
    """20 blocks of 10 s each, every 30 s: six shards of three blocks, and one of the last two."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def score(block):
        clock[0] += 10
        return [formula(example) for example in block]

    ReferenceCache(folder).fetch(
        [([row], [row]) for row in range(20)], score, block_tokens=2, publish_seconds=30
    )
    assert sorted(len(load_file(path)["ends"]) for path in shards(folder)) == [2] + [3] * 6


class Gate(Scorer):
    """`score` that waits, at every block, until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, block):
        self.arrived.release()
        assert self.go.acquire(timeout=30)
        return super().__call__(block)


@pytest.fixture
def building(folder, monkeypatch):
    """A thread that scores 4 examples one by one, stopped at the first: (examples, gate, thread)."""
    monkeypatch.setattr(reference_cache, "LOCK_POLL_SECONDS", 0.005)
    examples, gate = [([row], [row] * (9 - row)) for row in range(4)], Gate()
    options = {"block_tokens": 1, "publish_seconds": 0}
    thread = threading.Thread(target=lambda: ReferenceCache(folder).fetch(examples, gate, **options))
    thread.start()
    assert gate.arrived.acquire(timeout=30)
    yield examples, gate, thread
    gate.go.release(10)
    thread.join(30)


def test_a_waiting_process_says_so_once_and_returns_when_its_examples_are_published(folder, building):
    """The scoring process still has two examples to score then."""
    examples, gate, thread = building
    messages, results = [], []
    waiting = threading.Thread(
        target=lambda: results.append(
            ReferenceCache(folder).fetch(examples[1::-1], None, notify=messages.append)
        )
    )
    waiting.start()
    wait(lambda: messages)
    time.sleep(0.05)
    assert waiting.is_alive()
    gate.go.release(2)
    waiting.join(30)
    assert thread.is_alive() and len(gate.blocks) == 2
    assert (results[0].hits, results[0].scored, all_equal(results[0], examples[1::-1])) == (2, 0, True)
    assert messages == [f"Another process computes reference log-probabilities in {folder}: waiting for it."]


def test_a_waiting_process_scores_only_its_own_examples(folder, building):
    examples, gate, _ = building
    own_examples = [([9], [9]), *examples]
    score, messages, results = Scorer(), [], []
    waiting = threading.Thread(
        target=lambda: results.append(
            ReferenceCache(folder).fetch(own_examples, score, notify=messages.append)
        )
    )
    waiting.start()
    wait(lambda: messages)
    gate.go.release(4)
    waiting.join(30)
    assert score.examples == own_examples[:1]
    assert (results[0].hits, all_equal(results[0], own_examples)) == (4, True)


def test_what_is_published_just_before_the_lock_is_not_scored_again(folder, monkeypatch):
    """Another process ends between the last look at the shards and the lock."""
    examples, try_lock = make_examples(10), reference_cache.try_lock

    def lock_late(file):
        monkeypatch.setattr(reference_cache, "try_lock", try_lock)
        ReferenceCache(folder).fetch(examples, Scorer())
        return try_lock(file)

    monkeypatch.setattr(reference_cache, "try_lock", lock_late)
    result = ReferenceCache(folder).fetch(examples, None)
    assert (result.hits, result.scored, all_equal(result, examples)) == (10, 0, True)


def test_a_hit_needs_no_lock(folder, building):
    """While another process computes."""
    examples, gate, _ = building
    gate.go.release()
    assert gate.arrived.acquire(timeout=30)
    assert all_equal(ReferenceCache(folder).fetch(examples[:1], None, notify=pytest.fail), examples[:1])


def test_the_lock_is_released_even_if_a_child_was_left_behind(folder):
    """A child has its parent's open files, and with them the parent's lock."""
    children = []

    def score(block):
        lock = next(
            int(name)
            for name in os.listdir("/proc/self/fd")
            if os.path.realpath(f"/proc/self/fd/{name}").endswith(".lock")
        )
        children.append(subprocess.Popen(["sleep", "60"], pass_fds=[lock]))
        return [formula(example) for example in block]

    try:
        ReferenceCache(folder).fetch(make_examples(2), score)
        with (folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_file_locks_it_still_works(folder, monkeypatch, code):
    """Two at once do some work twice, and both are right."""

    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    examples, inner = make_examples(10), Scorer()

    def score(block):
        ReferenceCache(folder).fetch(examples, inner)
        return [formula(example) for example in block]

    assert all_equal(ReferenceCache(folder).fetch(examples, score), examples)
    assert len(inner.examples) == 10 and len(shards(folder)) == 2
    assert all_equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_stale_partial_files_are_deleted_and_recent_ones_are_not(folder):
    folder.mkdir(parents=True)
    for name, age in ((".dead.safetensors.1.partial", 7200), (".living.safetensors.2.partial", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    ReferenceCache(folder).fetch(make_examples(2), Scorer())
    assert leftovers(folder) == [".living.safetensors.2.partial"]


# ---- memory and time


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_large_shard_is_mapped_and_not_loaded(folder, no_fsync):
    """32 MB of log-probabilities: opening them costs less than 4 MB, and the arrays are views of the file."""
    tokens = np.arange(2**20)
    examples = [(tokens[:row], tokens) for row in range(8)]
    scores = np.linspace(-9, 0, len(tokens), dtype=np.float32)
    ReferenceCache(folder).fetch(examples, lambda block: [scores] * len(block))
    before = resident()
    result = ReferenceCache(folder).fetch(examples, None)
    assert resident() - before < 4 * 2**20
    base = result.logps[3]
    while isinstance(base, np.ndarray):
        assert not base.flags.writeable
        base = base.base
    assert isinstance(base.obj, mmap.mmap)
    assert all(np.array_equal(row, scores) for row in result.logps)


def test_many_shards_hold_few_open_files(folder, monkeypatch, no_fsync):
    monkeypatch.setattr(reference_shard, "MIN_MAPPED_BYTES", 1)
    monkeypatch.setattr(reference_cache, "MAX_MAPPED_FILES", 10)
    examples = [([row], [row]) for row in range(40)]
    ReferenceCache(folder).fetch(examples, Scorer(), block_tokens=1, publish_seconds=0)
    before = len(os.listdir("/proc/self/fd"))
    cache = ReferenceCache(folder)
    assert all_equal(cache.fetch(examples, None), examples)
    assert len(shards(folder)) == 40 and len(os.listdir("/proc/self/fd")) - before <= 10


def test_it_imports_no_torch():
    code = (
        "import sys, alignment_lab.engine.reference_cache; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- the check against recomputed values


def test_agreement_passes_and_disagreement_is_one_sentence(tmp_path):
    """Means of |difference|: (0.02 + 0) / 2 = 0.01 and 0.03; the largest decides, whatever the sign."""
    stored = [np.array([-1.0, -2.0], np.float32), np.array([-3.0], np.float32), np.array([], np.float32)]
    recomputed = [
        np.array([-1.02, -2.0], np.float32),
        np.array([-2.97], np.float32),
        np.array([], np.float32),
    ]
    check_agreement(stored, recomputed, tolerance=0.031, folder=tmp_path)
    check_agreement([], [], tolerance=0.0, folder=tmp_path)
    check_agreement(stored, stored, tolerance=0.0, folder=tmp_path)
    with pytest.raises(
        UserError, match=r"off by 0\.03 nats per token .* more than 0\.029.*delete that folder"
    ) as caught:
        check_agreement(stored, recomputed, tolerance=0.029, folder=tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad_row", [0, 1])
def test_a_nonfinite_value_does_not_agree(tmp_path, value, bad_row):
    stored = [np.array([-1.0], np.float32)] * 2
    recomputed = [np.array([value if row == bad_row else -1.0], np.float32) for row in range(2)]
    with pytest.raises(UserError, match="delete that folder"):
        check_agreement(stored, recomputed, tolerance=1e9, folder=tmp_path)


def test_other_examples_cannot_be_compared(tmp_path):
    short, long = np.zeros(1, np.float32), np.zeros(2, np.float32)
    with pytest.raises(AssertionError):
        check_agreement([short], [long], tolerance=1, folder=tmp_path)
    with pytest.raises(ValueError, match="zip"):
        check_agreement([short], [short, short], tolerance=1, folder=tmp_path)
