"""The store gives back what was scored, for these ids and no others, whatever was killed, damaged or doubled on the way.

The scores here are a formula of the ids, so that every number that comes back can be checked: the store knows no model.
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
    """-(sum of the prompt + place * id) / 7, which is different for any two examples of these tests."""
    prompt, completion = example
    return np.array(
        [-(sum(prompt) + place * token) / 7 for place, token in enumerate(completion, start=1)], np.float32
    )


class Scorer:
    """`score` by the formula; remembers the blocks that it was given."""

    def __init__(self) -> None:
        self.blocks: list[list[Example]] = []

    def __call__(self, block):
        self.blocks.append(list(block))
        return [formula(example) for example in block]

    @property
    def examples(self) -> list[Example]:
        return [example for block in self.blocks for example in block]


def made(count: int, seed: int = 0) -> list[Example]:
    """Pairs with a prompt in common, as preference rows are; every completion is another one."""
    draw = random.Random(seed)
    prompts = [draw.choices(range(50000), k=draw.randint(0, 30)) for _ in range(count // 2)]
    return [
        (prompt, [seed * count + row, *draw.choices(range(50000), k=draw.randint(0, 40))])
        for row, prompt in enumerate(prompts * 2)
    ]


def equal(fetched: FetchResult, examples: list[Example]) -> bool:
    """To the bit."""
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
def quick(monkeypatch):
    """No disk is waited for, in tests that write hundreds of times."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


# ---- the key


def test_a_key_is_of_the_lengths_and_the_ids():
    """int32, little-endian: the lengths 1 and 2, then 3, 4 and 5. The hash is that of any other blake2b."""
    words = "01000000 02000000 03000000 04000000 05000000".replace(" ", "")
    code = f"import hashlib; print(hashlib.blake2b(bytes.fromhex('{words}'), digest_size=16).hexdigest())"
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True).strip()
        == example_key([3], [4, 5]).hex()
    )


def test_a_key_changes_with_any_token_with_the_order_and_with_the_seam():
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
def test_a_key_is_of_the_ids_and_not_of_what_holds_them(kind):
    assert example_key(kind([5, 70000]), kind([1, 2])) == example_key([5, 70000], [1, 2])


# ---- hits and misses


def test_the_second_fetch_scores_nothing_whoever_asks(folder):
    examples, score = made(40), Scorer()
    store = ReferenceCache(folder)
    first = store.fetch(examples, score)
    assert (first.hits, first.scored, len(score.examples)) == (0, 40, 40)
    assert equal(first, examples)
    for again in (store, ReferenceCache(folder)):
        found = again.fetch(examples, None)
        assert (found.hits, found.scored) == (40, 0)
        assert equal(found, examples)
    assert leftovers(folder) == []


def test_only_what_is_new_is_scored(folder):
    """A subset, a permutation, a superset and another set, each fetched by a store of its own."""
    examples = made(40)
    ReferenceCache(folder).fetch(examples, Scorer())
    shuffled = random.Random(1).sample(examples, 40)
    others = made(20, seed=1)
    for wanted, new in (
        (examples[5:9], []),
        (shuffled, []),
        (others[:6] + shuffled, others[:6]),
        (others, others[6:]),
    ):
        score = Scorer()
        found = ReferenceCache(folder).fetch(wanted, score)
        assert (found.hits, found.scored) == (len(wanted) - len(new), len(new))
        assert sorted(score.examples) == sorted(new)
        assert equal(found, wanted)


def test_an_example_that_comes_twice_is_scored_once(folder):
    examples, score = [([1], [2, 3]), ([1, 2], [3]), ([1], [2, 3])], Scorer()
    found = ReferenceCache(folder).fetch(examples, score)
    assert sorted(score.examples) == [([1], [2, 3]), ([1, 2], [3])]
    assert (found.hits, found.scored) == (1, 2)
    assert equal(found, examples)


def test_no_examples_touch_nothing(folder):
    assert ReferenceCache(folder).fetch([], None) == FetchResult([], 0, 0)
    assert not folder.exists()


@pytest.mark.parametrize("examples", [[([], [])], [([1], []), ([], [1]), ([], []), ([2], [])]])
def test_nothing_to_score_is_stored_too(folder, examples):
    assert equal(ReferenceCache(folder).fetch(examples, Scorer()), examples)
    assert equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_a_key_that_ends_in_zeros_is_one_like_any_other(folder, monkeypatch):
    """numpy's own bytes type would cut them off."""
    monkeypatch.setattr(
        reference_cache,
        "example_key",
        lambda prompt, completion: completion[0].to_bytes(16, "big" if prompt else "little"),
    )
    examples = [([1], [1]), ([], [1]), ([1], [256]), ([], [256])]
    assert equal(ReferenceCache(folder).fetch(examples, Scorer()), examples)
    assert equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_two_folders_know_nothing_of_each_other(tmp_path):
    """Nor does a shard that was copied from one to the other count there: its numbers are another model's."""
    examples = made(4)
    ReferenceCache(tmp_path / "a").fetch(examples, Scorer())
    (tmp_path / "b").mkdir()
    for path in shards(tmp_path / "a"):
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    assert ReferenceCache(tmp_path / "b").fetch(examples, Scorer()).scored == 4
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / "else").mkdir()
    (tmp_path / "moved").rename(tmp_path / "else" / "a")
    assert equal(ReferenceCache(tmp_path / "else" / "a").fetch(examples, None), examples)


def test_a_shard_is_a_plain_safetensors_file(folder):
    examples = made(6)
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


def test_blocks_hold_every_place_once_within_the_bound_longest_first():
    """Every prompt of these examples has two completions, and all of them fit: no prompt is met in two blocks."""
    examples = made(300)
    found = plan_blocks(examples, range(300), 256)
    assert sorted(place for block in found for place in block) == list(range(300))
    for block in found:
        prompts = {tuple(examples[place][0]) for place in block}
        assert sum(map(len, prompts)) + sum(len(examples[place][1]) for place in block) <= 256
    at = collections.defaultdict(set)
    for number, block in enumerate(found):
        for place in block:
            at[tuple(examples[place][0])].add(number)
    assert {len(numbers) for prompt, numbers in at.items() if prompt} == {1}
    longest = [max(sum(map(len, examples[place])) for place in block) for block in found]
    assert longest == sorted(longest, reverse=True)


def test_a_prompt_counts_once_in_a_block():
    """10 + 3 * 5 = 25 tokens fit into 25, and 24 hold two of the three completions."""
    examples = [([7] * 10, [place] * 5) for place in range(3)]
    assert plan_blocks(examples, range(3), 25) == [[0, 1, 2]]
    assert plan_blocks(examples, range(3), 24) == [[0, 1], [2]]


def test_an_example_is_never_cut():
    """One token over the bound stands alone, and so does every completion where the prompt is larger than a block."""
    assert plan_blocks([([1] * 5, [2] * 6), ([1], [2])], range(2), 10) == [[0], [1]]
    assert plan_blocks([([1] * 50, [place]) for place in range(3)], range(3), 10) == [[0], [1], [2]]
    assert plan_blocks([([], [])], [0], 0) == [[0]]
    assert plan_blocks([], [], 10) == []


def test_score_and_progress_see_the_blocks(folder):
    examples, score, seen = made(60), Scorer(), []

    def progress(steps):
        seen.append(len(steps))
        return steps

    ReferenceCache(folder).fetch(examples, score, progress=progress, block_tokens=200)
    assert seen == [len(score.blocks)] and len(score.blocks) > 5
    assert score.blocks == [
        [examples[place] for place in block] for block in plan_blocks(examples, range(60), 200)
    ]


# ---- what score may not give


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e300])  # the last is infinite in float32
def test_a_value_that_is_not_finite_is_refused_by_row_and_never_stored(folder, value):
    """Rows 1 and 3; blocks that were scored before are kept, those after are not scored."""
    examples = [([row], [row] * (9 - row)) for row in range(6)]

    def score(block):
        return [np.where(row in (1, 3), value, formula(([row], ids)).astype(float)) for [row], ids in block]

    with pytest.raises(UserError, match=r"not finite for the examples 1, 3 \(counted from 0\)"):
        ReferenceCache(folder).fetch(
            examples, score, block_tokens=38
        )  # 10 + 9 + 8 + 7 = 34 tokens: four examples, then two
    assert shards(folder) == []
    with pytest.raises(UserError, match="the examples 1 "):
        ReferenceCache(folder).fetch(examples, score, block_tokens=10)  # one by one
    again = Scorer()
    found = ReferenceCache(folder).fetch(examples, again)
    assert (found.hits, equal(found, examples)) == (1, True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: rows[:-1],
        lambda rows: [row[:-1] for row in rows],
        lambda rows: [row[None] for row in rows],
    ],
)
def test_a_wrong_number_of_values_is_a_mistake_of_the_caller(folder, wrong):
    with pytest.raises(AssertionError):
        ReferenceCache(folder).fetch(made(4), lambda block: wrong([formula(example) for example in block]))
    assert shards(folder) == []


# ---- damage


def damaged_fetches(folder: Path, examples: list[Example], contents: list[bytes]) -> list[int]:
    """How many examples are scored again where the one shard has these bytes; the numbers are right in any case, and then at hand."""
    scored = []
    for number, content in enumerate(contents):
        here = folder.parent / str(number) / folder.name  # the same name: a shard belongs to it
        here.mkdir(parents=True)
        (here / "shard.safetensors").write_bytes(content)
        found = ReferenceCache(here).fetch(examples, Scorer())
        assert equal(found, examples)
        assert equal(ReferenceCache(here).fetch(examples, None), examples)
        assert (here / "shard.safetensors").exists() == (found.scored == 0)
        assert (here / "shard.safetensors.damaged").exists() == (found.scored > 0)
        scored.append(found.scored)
    return scored


@pytest.fixture(params=["read", "mapped"])
def shard(request, folder, monkeypatch, quick):
    """(examples, the bytes of the shard that holds them)."""
    monkeypatch.setattr(reference_shard, "MIN_MAPPED_BYTES", 1 if request.param == "mapped" else 2**20)
    examples = [([1, 2], [3, 4, 5]), ([6], [7])]
    ReferenceCache(folder).fetch(examples, Scorer())
    return examples, shards(folder)[0].read_bytes()


def test_a_shard_cut_off_at_any_byte_is_scored_again(folder, shard):
    examples, content = shard
    assert set(damaged_fetches(folder, examples, [content[:size] for size in range(len(content))])) == {2}


def test_a_flipped_bit_anywhere_is_never_a_wrong_number(folder, shard):
    """In the tensors and in the digest it is always seen; in what else the header says it may mean nothing."""
    examples, content = shard
    draw = random.Random(0)
    flipped = [
        content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        for at in range(len(content))
    ]
    scored = damaged_fetches(folder, examples, flipped)
    header = 8 + int.from_bytes(content[:8], "little")
    digest = json.loads(content[8:header])["__metadata__"]["digest"].encode()
    place = content.index(digest)
    assert set(scored[header:]) == set(scored[place : place + len(digest)]) == set(scored[:8]) == {2}


def test_anything_else_is_set_aside(folder, shard):
    examples, content = shard
    draw = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    payload = content[header:]

    def with_header(text: str | bytes) -> bytes:
        text = text.encode() if isinstance(text, str) else text
        return len(text).to_bytes(8, "little") + text + payload

    facts = json.loads(content[8:header])
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
        texts += [json.dumps({**facts, name: {**facts[name], "data_offsets": value}}) for value in offsets]
        texts += [json.dumps({key: value for key, value in facts.items() if key != name})]
    texts += [
        json.dumps({**facts, "__metadata__": value})
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
    examples, others = made(20), made(20, seed=1)
    ReferenceCache(folder).fetch(examples, Scorer())
    (path,) = shards(folder)
    ReferenceCache(folder).fetch(others, Scorer())
    path.write_bytes(path.read_bytes()[:-1])
    score = Scorer()
    found = ReferenceCache(folder).fetch(examples + others, score)
    assert (found.hits, sorted(score.examples)) == (20, sorted(examples))
    assert equal(found, examples + others)


def test_what_another_process_published_is_found_and_what_it_set_aside_is_no_error(folder, monkeypatch):
    examples = made(20)
    store, other = ReferenceCache(folder), ReferenceCache(folder)
    store.fetch(examples[:10], Scorer())
    other.fetch(examples, Scorer())
    assert equal(store.fetch(examples, None), examples)
    opened = reference_cache.open_shard

    def gone(path, *facts, **more):
        if path == shards(folder)[0]:
            raise FileNotFoundError(path)
        return opened(path, *facts, **more)

    monkeypatch.setattr(reference_cache, "open_shard", gone)
    assert equal(ReferenceCache(folder).fetch(examples, Scorer()), examples)


def test_a_shard_is_synced_before_it_has_its_name_and_its_name_after(folder, monkeypatch):
    """After a power cut there is the whole file under its name, or no such name."""
    seen = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: seen.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, len(shards(folder)))),
    )
    ReferenceCache(folder).fetch(made(2), Scorer())
    (path,) = shards(folder)
    assert seen == [(f".{path.name}.{os.getpid()}.partial", 0), (folder.name, 1)]


# ---- disk full


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


REFUSED = r"cannot be stored in \S+store \(No space left on device\): make it writable, with 0\.1 MB free, or .*ALIGNMENT_LAB_CACHE"


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_stored(folder, monkeypatch, where):
    examples, others = made(20), made(20, seed=1)
    ReferenceCache(folder).fetch(examples, Scorer())
    with monkeypatch.context() as full:
        full.setattr(where, no_space)
        with pytest.raises(UserError, match=REFUSED):
            ReferenceCache(folder).fetch(examples + others, Scorer())
    assert leftovers(folder) == [] and len(shards(folder)) == 1
    found = ReferenceCache(folder).fetch(examples + others, Scorer())
    assert (found.hits, equal(found, examples + others)) == (20, True)


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


def test_a_full_disk_while_it_builds_stops_at_once_and_keeps_the_blocks_before(folder, monkeypatch):
    """Each block is published by itself; the third cannot be, and nothing is scored after it."""
    examples, score, replace, times = [([row], [row]) for row in range(6)], Scorer(), Path.replace, []

    def third(self, target):
        times.append(target)
        return no_space() if len(times) == 3 else replace(self, target)

    monkeypatch.setattr("pathlib.Path.replace", third)
    with pytest.raises(UserError, match=REFUSED):
        ReferenceCache(folder).fetch(examples, score, block_tokens=2, publish_seconds=0)
    assert (len(score.blocks), len(times), len(shards(folder)), leftovers(folder)) == (3, 3, 2, [])
    found = ReferenceCache(folder).fetch(examples, Scorer())
    assert (found.hits, equal(found, examples)) == (2, True)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be stored in"):
        ReferenceCache(tmp_path / "file" / "store").fetch(made(2), Scorer())


def test_what_is_stored_is_read_where_nothing_can_be_written(folder, monkeypatch):
    examples = made(10)
    ReferenceCache(folder).fetch(examples, Scorer())
    for where in (
        "os.open",
        "pathlib.Path.mkdir",
        "pathlib.Path.replace",
        "pathlib.Path.rename",
        "fcntl.flock",
    ):
        monkeypatch.setattr(where, no_space)
    assert equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_a_disk_that_loses_what_is_written_is_a_sentence(folder, monkeypatch):
    monkeypatch.setattr(reference_cache, "write_atomic", lambda path, content: path.write_bytes(content[:-1]))
    with pytest.raises(UserError, match="cannot be read back"):
        ReferenceCache(folder).fetch(made(2), Scorer())


# ---- killed, and several at once


class Slow:
    """`score` that takes `seconds` for an example, and writes a line "PID PLACE" for each, in one write."""

    def __init__(self, log: Path, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, block):
        for example in block:
            time.sleep(self.seconds)
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {example[1][0]}\n")
        return [formula(example) for example in block]


def build(folder: Path, log: Path, done: multiprocessing.Queue, count: int, seconds: float) -> None:
    """The life of a process: fetch, check, say so."""
    examples = made(count)
    found = ReferenceCache(folder).fetch(examples, Slow(log, seconds), publish_seconds=0.1, block_tokens=100)
    done.put((os.getpid(), equal(found, examples), found.hits, found.scored))


def wait(condition, seconds: float = 30.0):
    """The first true value of condition()."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


def test_four_at_once_with_the_builder_killed_twice_make_one_pass(folder, tmp_path):
    """A kill loses what was scored in publish_seconds = 0.1, 10 examples at 10 ms, and the block that was at work, at most
    100 tokens: 7 pairs of these; twice that is 48. One by one, the processes would score 4 * 150 = 600.
    """
    log, count, context = tmp_path / "log", 150, multiprocessing.get_context("spawn")
    done = context.Queue()
    log.touch()
    processes = [context.Process(target=build, args=(folder, log, done, count, 0.01)) for _ in range(4)]
    for process in processes:
        process.start()

    def lines() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()]

    def builder():
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
        victim = wait(builder)
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
    assert equal(ReferenceCache(folder).fetch(made(count), None), made(count))


def test_after_a_stop_in_the_middle_only_the_rest_is_scored(folder):
    """Any error of the scoring, Ctrl-C too: what was scored is published."""
    examples, before = made(60), Scorer()

    def stopped(block):
        if len(before.blocks) == 3:
            raise KeyboardInterrupt
        return before(block)

    with pytest.raises(KeyboardInterrupt):
        ReferenceCache(folder).fetch(examples, stopped, block_tokens=100)
    assert len(shards(folder)) == 1
    after = Scorer()
    found = ReferenceCache(folder).fetch(examples, after, block_tokens=100)
    assert sorted(before.examples + after.examples) == sorted(examples)
    assert (found.hits, equal(found, examples)) == (len(before.examples), True)


def test_work_is_published_when_its_time_has_come(folder, monkeypatch):
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
    """`score` that waits, at every block, until it is let on."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, block):
        self.arrived.release()
        assert self.go.acquire(timeout=30)
        return super().__call__(block)


@pytest.fixture
def building(folder, monkeypatch):
    """A thread that builds 4 examples one by one, stopped at the first: (examples, gate, thread)."""
    monkeypatch.setattr(reference_cache, "POLL_SECONDS", 0.005)
    examples, gate = [([row], [row] * (9 - row)) for row in range(4)], Gate()
    options = {"block_tokens": 1, "publish_seconds": 0}
    thread = threading.Thread(target=lambda: ReferenceCache(folder).fetch(examples, gate, **options))
    thread.start()
    assert gate.arrived.acquire(timeout=30)
    yield examples, gate, thread
    gate.go.release(10)
    thread.join(30)


def test_who_waits_says_so_once_and_goes_on_when_its_own_is_there(folder, building):
    """The builder still has two examples to score then."""
    examples, gate, thread = building
    said, found = [], []
    waiting = threading.Thread(
        target=lambda: found.append(ReferenceCache(folder).fetch(examples[1::-1], None, notify=said.append))
    )
    waiting.start()
    wait(lambda: said)
    time.sleep(0.05)
    assert waiting.is_alive()
    gate.go.release(2)
    waiting.join(30)
    assert thread.is_alive() and len(gate.blocks) == 2
    assert (found[0].hits, found[0].scored, equal(found[0], examples[1::-1])) == (2, 0, True)
    assert said == [f"Another process computes reference log-probabilities in {folder}: waiting for it."]


def test_who_waits_for_something_else_scores_only_that(folder, building):
    examples, gate, _ = building
    mine = [([9], [9]), *examples]
    score, said, found = Scorer(), [], []
    waiting = threading.Thread(
        target=lambda: found.append(ReferenceCache(folder).fetch(mine, score, notify=said.append))
    )
    waiting.start()
    wait(lambda: said)
    gate.go.release(4)
    waiting.join(30)
    assert score.examples == mine[:1]
    assert (found[0].hits, equal(found[0], mine)) == (4, True)


def test_what_came_just_before_its_turn_is_not_scored_again(folder, monkeypatch):
    """Another process ends between the last look at the shards and the lock."""
    examples, locked = made(10), reference_cache.try_lock

    def late(file):
        monkeypatch.setattr(reference_cache, "try_lock", locked)
        ReferenceCache(folder).fetch(examples, Scorer())
        return locked(file)

    monkeypatch.setattr(reference_cache, "try_lock", late)
    found = ReferenceCache(folder).fetch(examples, None)
    assert (found.hits, found.scored, equal(found, examples)) == (10, 0, True)


def test_what_is_stored_needs_no_turn(folder, building):
    """While another one builds."""
    examples, gate, _ = building
    gate.go.release()
    assert gate.arrived.acquire(timeout=30)
    assert equal(ReferenceCache(folder).fetch(examples[:1], None, notify=pytest.fail), examples[:1])


def test_the_turn_ends_with_the_fetch_even_if_a_child_was_left_behind(folder):
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
        ReferenceCache(folder).fetch(made(2), score)
        with (folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_builds_all_the_same(folder, monkeypatch, code):
    """Two at once do some work twice, and both are right."""

    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    examples, inner = made(10), Scorer()

    def score(block):
        ReferenceCache(folder).fetch(examples, inner)
        return [formula(example) for example in block]

    assert equal(ReferenceCache(folder).fetch(examples, score), examples)
    assert len(inner.examples) == 10 and len(shards(folder)) == 2
    assert equal(ReferenceCache(folder).fetch(examples, None), examples)


def test_half_written_files_of_the_dead_are_deleted_and_those_of_the_living_are_not(folder):
    folder.mkdir(parents=True)
    for name, age in ((".dead.safetensors.1.partial", 7200), (".living.safetensors.2.partial", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    ReferenceCache(folder).fetch(made(2), Scorer())
    assert leftovers(folder) == [".living.safetensors.2.partial"]


# ---- memory and time


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_large_store_is_mapped_and_not_loaded(folder, quick):
    """32 MB of log-probabilities: opening them costs less than 4 MB, and what is read lies in the file."""
    tokens = np.arange(2**20)
    examples = [(tokens[:row], tokens) for row in range(8)]
    scores = np.linspace(-9, 0, len(tokens), dtype=np.float32)
    ReferenceCache(folder).fetch(examples, lambda block: [scores] * len(block))
    before = resident()
    found = ReferenceCache(folder).fetch(examples, None)
    assert resident() - before < 4 * 2**20
    base = found.logps[3]
    while isinstance(base, np.ndarray):
        assert not base.flags.writeable
        base = base.base
    assert isinstance(base.obj, mmap.mmap)
    assert all(np.array_equal(row, scores) for row in found.logps)


def test_many_shards_hold_few_open_files(folder, monkeypatch, quick):
    monkeypatch.setattr(reference_shard, "MIN_MAPPED_BYTES", 1)
    monkeypatch.setattr(reference_cache, "MAX_MAPPED_FILES", 10)
    examples = [([row], [row]) for row in range(40)]
    ReferenceCache(folder).fetch(examples, Scorer(), block_tokens=1, publish_seconds=0)
    before = len(os.listdir("/proc/self/fd"))
    store = ReferenceCache(folder)
    assert equal(store.fetch(examples, None), examples)
    assert len(shards(folder)) == 40 and len(os.listdir("/proc/self/fd")) - before <= 10


def test_it_imports_no_torch():
    code = "import sys, alignment_lab.engine.reference_cache; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- the check against a live model


def test_what_fits_passes_and_what_does_not_is_a_sentence(tmp_path):
    """Means of |difference|: (0.02 + 0) / 2 = 0.01 and 0.03; the largest decides, whatever the sign."""
    stored = [np.array([-1.0, -2.0], np.float32), np.array([-3.0], np.float32), np.array([], np.float32)]
    live = [np.array([-1.02, -2.0], np.float32), np.array([-2.97], np.float32), np.array([], np.float32)]
    check_agreement(stored, live, tolerance=0.031, folder=tmp_path)
    check_agreement([], [], tolerance=0.0, folder=tmp_path)
    check_agreement(stored, stored, tolerance=0.0, folder=tmp_path)
    with pytest.raises(
        UserError, match=r"off by 0\.03 nats per token .* more than 0\.029.*delete that folder"
    ) as refused:
        check_agreement(stored, live, tolerance=0.029, folder=tmp_path)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_does_not_fit(tmp_path, value, place):
    stored = [np.array([-1.0], np.float32)] * 2
    live = [np.array([value if row == place else -1.0], np.float32) for row in range(2)]
    with pytest.raises(UserError, match="delete that folder"):
        check_agreement(stored, live, tolerance=1e9, folder=tmp_path)


def test_other_examples_cannot_be_compared(tmp_path):
    one, two = np.zeros(1, np.float32), np.zeros(2, np.float32)
    with pytest.raises(AssertionError):
        check_agreement([one], [two], tolerance=1, folder=tmp_path)
    with pytest.raises(ValueError, match="zip"):
        check_agreement([one], [one, one], tolerance=1, folder=tmp_path)
