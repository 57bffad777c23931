"""Repeats and leaks that were planted in rows are found, and nothing else is."""

from __future__ import annotations

import json
import random
import re

import pytest

from alignment_lab.config import SpecError
from alignment_lab.data import DataError, load_rows
from alignment_lab.data.contamination import find_leaks, heldout_texts, read_benchmark, shared_passage
from alignment_lab.data.duplicates import near_duplicates
from alignment_lab.data.words import hash_sequences, split_words

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "st", "lt", "ck")]


def text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def conversation(prompt: str, answer: str, **message) -> dict:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer} | message,
        ]
    }


def random_rows(seed: int, count: int) -> list[dict]:
    rng = random.Random(seed)
    return [conversation(text(rng, rng.randint(4, 30)), text(rng, rng.randint(3, 60))) for _ in range(count)]


def change_word(rng: random.Random, row: dict) -> dict:
    changed = json.loads(json.dumps(row))
    message = changed["messages"][-1]
    words = message["content"].split()
    words[rng.randrange(len(words))] = "another"
    message["content"] = " ".join(words)
    return changed


@pytest.mark.parametrize("seed", range(3))
def test_near_repeats_are_found_and_the_first_of_them_stays(seed):
    """One word of forty was changed, which leaves 35 of 41 sequences at least; random rows share none."""
    rng = random.Random(seed)
    rows = random_rows(seed, 150)
    long = [index for index, row in enumerate(rows) if len(row["messages"][1]["content"].split()) >= 40]
    planted = {len(rows) + place: index for place, index in enumerate(long)}
    rows += [change_word(rng, rows[index]) for index in long]
    found = near_duplicates(rows, 0.8)
    assert {index: near.first for index, near in found.items()} == planted
    assert all(0.8 <= near.similarity < 1 for near in found.values())
    assert near_duplicates(rows, 0.99) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {"messages": [{"role": "system", "content": "Be brief."}, *row["messages"]]},
        lambda row: conversation(*(m["content"].upper() + " !" for m in row["messages"])),
        lambda row: conversation(*(m["content"].replace(" ", ",  ") for m in row["messages"])),
    ],
    ids=["system prompt", "case", "blanks and punctuation"],
)
def test_what_changes_no_word_makes_no_other_row(change):
    rows = random_rows(7, 20)
    found = near_duplicates([*rows, *map(change, rows)], 0.9)
    assert {index: (near.first, near.similarity) for index, near in found.items()} == {
        20 + index: (index, 1.0) for index in range(20)
    }


def test_rows_that_mean_different_things_in_the_same_words_stay():
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Rome"}}}
    other = {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Oslo"}}}
    words = "what is the weather like there today", "i will look it up for you"
    called = [conversation(*words, tool_calls=[each]) for each in (call, other)]
    prompt = [{"role": "user", "content": words[0]}]
    answer = [{"role": "assistant", "content": words[1]}]
    labeled = [{"prompt": prompt, "completion": answer, "label": label} for label in (True, False)]
    assert near_duplicates([*called, *labeled], 0.8) == {}
    assert list(near_duplicates([*labeled, *labeled], 0.8)) == [2, 3]
    assert near_duplicates([], 0.8) == near_duplicates([conversation("hi", "ho")] * 2, 0.8) == {}


def test_hashes_of_sequences_are_those_of_the_words_and_span_no_turn():
    rng = random.Random(3)
    turns = [split_words(text(rng, count)) for count in (0, 3, 20, 12, 13, 40)]
    hashes, owners = hash_sequences(turns, 13)
    expected = [
        (owner, tuple(words[start : start + 13]))
        for owner, words in enumerate(turns)
        for start in range(len(words) - 12)
    ]
    assert owners.tolist() == [owner for owner, _ in expected]
    assert len(set(hashes.tolist())) == len({words for _, words in expected})
    again, _ = hash_sequences(turns[-1:], 13)
    assert again.tolist() == hashes[owners == 5].tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't STOP, now!", "dont stop now"),
        ("a well-known   word_pair", "A well known word pair."),
        ("\u201cCaf\u00e9\u201d \ufb01ne\u2019s", "cafe\u0301 fines"),
        ("\u5317\u4eac\u662f", "\u5317 \u4eac\u3001\u662f"),
    ],
)
def test_words_without_case_and_punctuation(one, other):
    assert split_words(one) == split_words(other)


@pytest.mark.parametrize("seed", range(3))
def test_leaks_are_found_wherever_they_were_planted_and_no_others(seed):
    """Thirteen words of a held-out row inside a turn of any role, twelve of them not."""
    rng = random.Random(seed)
    rows, heldout = random_rows(seed, 200), random_rows(seed + 100, 20)
    planted = {}
    for place in rng.sample(range(len(rows)), 24):
        number = rng.randrange(len(heldout))
        turns = [m["content"].split() for m in heldout[number]["messages"]]
        words = max(turns, key=len)
        leaks = place % 2 == 0 and len(words) >= 13
        count = 13 if leaks else 12
        start = rng.randint(0, max(0, len(words) - count))
        passage = " ".join(words[start : start + count]).title() + "."
        rows[place]["messages"][rng.randint(0, 1)]["content"] = f"Before: {passage} And after"
        if leaks:
            planted[place] = number
    measured = heldout_texts(heldout)
    found = find_leaks(rows, measured, 13)
    assert {place: leak.measured for place, leak in found.rows.items()} == planted
    assert found.measured == set(planted.values())
    for place, leak in found.rows.items():
        assert len(shared_passage(rows[place], measured[leak.measured], 13).split()) == 13


def test_a_rejected_answer_leaks_too_and_a_system_prompt_is_no_leak():
    passage = " ".join(WORDS[:20])
    measured = heldout_texts([conversation("q", passage)])
    pair = {"prompt": [{"role": "user", "content": "q"}]} | {
        key: [{"role": "assistant", "content": content}]
        for key, content in (("chosen", "a"), ("rejected", passage))
    }
    instructed = conversation("q", "a")
    instructed["messages"].insert(0, {"role": "system", "content": passage})
    assert list(find_leaks([pair, instructed], measured, 13).rows) == [0]


def test_a_phrase_in_many_rows_is_no_leak_but_a_whole_prompt_is(tmp_path):
    phrase = " ".join(WORDS[:15])
    rows = [conversation(f"{phrase} {number}", text(random.Random(number), 9)) for number in range(40)]
    file = tmp_path / "bench.txt"
    file.write_text(f"{phrase} and what\n{rows[3]['messages'][0]['content']}\n")
    found = find_leaks(rows, read_benchmark(str(file)), 13)
    assert list(found.rows) == [3] and found.phrases == 3


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.jsonl", '{"question": "What is it?", "answer": "Paris"}\n{"question": "Who?"}\n', 2),
        ("a.json", '[{"id": "7", "problem": "Add 2 and 3.", "solution": "5"}]', 1),
        ("a.csv", "category,prompt\nmath,Add 2 and 3.\n", 1),
        ("a.txt", "Add 2 and 3.\n\nWho?\n", 2),
        ("a.jsonl", '{"turns": ["Add 2 and 3.", "And 4?"]}\n', 1),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "Add 2 and 3."}]}\n', 1),
        ("test-00000.jsonl", '{"frage": "Add 2 and 3."}\n', 1),
    ],
)
def test_prompts_of_a_benchmark_in_any_kind_of_file(name, content, prompts, tmp_path):
    """A short prompt leaks as a whole turn, and not as a part of one; an answer in another column never."""
    (tmp_path / name).write_text(content)
    measured = read_benchmark(str(tmp_path / name))
    assert len(measured) == prompts
    asked = measured[0].texts[0]
    rows = [conversation(asked.lower(), "No."), conversation(f"Tell me: {asked} Or not", "Paris")]
    assert list(find_leaks(rows, measured, 13).rows) == [0]


@pytest.mark.parametrize(
    "content", ["{}\n", '{"a": 1}\n', '{"messages": [{"role": "assistant", "content": "x"}]}\n']
)
def test_a_benchmark_without_text_is_refused(content, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"data\.clean\.benchmarks=.*a\.jsonl: "):
        read_benchmark(str(tmp_path / "a.jsonl"))


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(rng: random.Random) -> dict:
    """One with many words, as no two rows share thirteen of them."""
    return {
        "prompt": text(rng, rng.randint(5, 30)),
        "chosen": text(rng, 40),
        "rejected": text(rng, rng.randint(3, 40)),
    }


@pytest.fixture
def loaded(composed, tmp_path):
    """The splits of rows, with `data.clean` options."""

    def load(rows, *options: str, method: str = "dpo"):
        path = write(tmp_path / "rows.jsonl", rows)
        return load_rows(composed([f"method={method}", "data=local", f"data.path={path}", *options]))

    return load


EVERYTHING = ("data.clean.duplicates=near", "data.clean.overlap=drop")


@pytest.mark.parametrize("method", ["dpo", "sft", "kto"])
def test_of_clean_rows_none_is_left_out(method, loaded, tmp_path):
    rng = random.Random(2)
    rows = [pair(rng) for _ in range(60)]
    file = write(tmp_path / "bench.jsonl", [{"prompt": text(rng, 20)} for _ in range(30)])
    splits = loaded(rows, *EVERYTHING, f"data.clean.benchmarks=[{file}]", method=method)
    plain = loaded(rows, method=method)
    assert splits.train == plain.train and splits.heldout == plain.heldout
    assert splits.dropped == plain.dropped == {} and plain.findings == []
    assert len(splits.findings) == 4  # it says that nothing was found


@pytest.mark.parametrize("method", ["dpo", "sft", "kto"])
def test_planted_repeats_and_leaks_are_left_out_and_told_whatever_the_method(method, loaded, tmp_path):
    rng = random.Random(4)
    rows, held = [pair(rng) for _ in range(40)], [pair(rng) for _ in range(5)]
    near = [*rows[2]["chosen"].split()[:-1], "another"]
    planted = [
        rows[0] | {"prompt": rows[0]["prompt"].upper(), "chosen": f"  {rows[0]['chosen']}\n"},
        rows[1] | {"system": "Be kind.", "rejected": "Something else."},
        rows[2] | {"chosen": " ".join(near)},
        pair(rng) | {"chosen": f"As they say, {' '.join(held[1]['chosen'].split()[5:20])}!"},
        pair(rng) | {"prompt": f"{text(rng, 3)}?"},
    ]
    bench = write(
        tmp_path / "bench.jsonl", [{"question": planted[-1]["prompt"].title()}, {"question": "Why?"}]
    )
    options = [f"data.eval_path={write(tmp_path / 'held.jsonl', held)}"]
    cleaned = loaded(
        [*rows, *planted], *options, *EVERYTHING, f"data.clean.benchmarks=[{bench}]", method=method
    )
    assert cleaned.dropped == cleaned.sources[0].dropped == {
        "repeats another row": 2,
        "nearly repeats another row": 1,
        "shares a passage with a held-out row": 1,
        "holds a prompt of a benchmark": 1,
    }  # fmt: skip
    assert cleaned.train == loaded(rows, *options, method=method).train
    found = cleaned.cleaned
    assert found["benchmarks"]["files"][bench] == {"prompts": 2, "found": 1, "rows": 1}
    places = [
        (found["duplicates"]["examples"][0], 41, ("like", "rows", 1)),
        (found["duplicates"]["near_examples"][0], 43, ("like", "rows", 3)),
        (found["overlap"]["examples"][0], 44, ("in", "held", 2)),
        (found["benchmarks"]["examples"][0], 45, ("in", "bench", 1)),
    ]
    for example, line, (key, file, other) in places:
        assert example["row"].endswith(f"rows.jsonl:{line}")
        assert example[key].endswith(f"{file}.jsonl:{other}")
        assert any(example["row"] in told and example["text"][:20] in told for told in cleaned.findings)
    counted = loaded([*rows, *planted], *options, method=method)
    assert counted.dropped == {} and len(counted.train) == (40 + 5) * (2 if method == "kto" else 1)
    assert [told.partition(":")[0] for told in counted.findings] == ["duplicates", "overlap"]
    assert all("leaves" in told for told in counted.findings)


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("data.clean.threshold=0.2", "data.clean.threshold=0.2: must lie between 0.5 and 1"),
        ("data.clean.ngram=2", "data.clean.ngram=2: must lie between 5 and 50 words"),
        ("data.clean.benchmarks=[nowhere.txt]", "data.clean.benchmarks=nowhere.txt: no such file"),
        (
            "data.clean.benchmarks=[pyproject.toml,pyproject.toml]",
            "data.clean.benchmarks=pyproject.toml: is named",
        ),
    ],
)
def test_an_option_that_makes_no_sense_is_one_sentence(override, phrase, composed):
    with pytest.raises(SpecError, match=re.escape(phrase)):
        composed([override])
