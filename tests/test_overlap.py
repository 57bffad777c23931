"""Held out is held out: no prompt, exchange or longer turn on both sides, whatever the method and the
spelling.
"""

import json
import random
import re

import numpy
import pytest

from alignment_lab import data
from alignment_lab.data import load_rows, prompt_messages, take_groups
from alignment_lab.data.overlap import MAX_COMMON_ROWS, connected

METHODS = ("sft", "dpo", "ipo", "kto", "reward")


@pytest.fixture
def loaded(composed, write_rows):
    def make(rows: list[dict], *overrides: str):
        return load_rows(composed(["data=local", f"data.path={write_rows(rows)}", *overrides]))

    return make


def plain(text: str) -> str:
    """The test's own reading of "the same text"."""
    return re.sub(r"\s", "", text).lower()


def conversation(row: dict) -> list[tuple[str, str]]:
    messages = row.get("messages") or row["prompt"] + row.get("chosen", row.get("completion"))
    return [(each["role"], plain(each["content"])) for each in messages if each["role"] != "system"]


def prompts(row: dict) -> set[str]:
    """Every prompt that training on this row answers, by any method."""
    turns = conversation(row)
    return {json.dumps(turns[:index]) for index in range(1, len(turns)) if turns[index][0] == "assistant"}


def answers(row: dict) -> set[str]:
    return {text for role, text in conversation(row) if role == "assistant"}


def respelled(text: str, generator: random.Random) -> str:
    change = generator.choice([str.lower, str.upper, str.title, lambda t: f"  {t}\n", lambda t: t + " ", str])
    return change(text)


def random_pairs(seed: int, count: int = 240) -> list[dict]:
    """Conversations of one to three turns from few openings; some begin as others do, cut or in another
    spelling.
    """
    generator = random.Random(seed)
    rows: list[dict] = []
    for number in range(count):
        if rows and generator.random() < 0.4:
            earlier = generator.choice(rows)
            turns = [turn for turn in earlier["prompt"] if turn["role"] != "system"]
            prompt = [
                {**turn, "content": respelled(turn["content"], generator)}
                for turn in turns[: generator.randrange(1, len(turns) + 1, 2)]
            ]
        else:
            prompt = [{"role": "user", "content": f"What is to be said of matter {number} today?"}]
            for turn in range(generator.randrange(3)):
                answer = f"Of matter {number} I say this much, {turn} times."
                prompt += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": f"Go on with {number}, {turn}."},
                ]
        if generator.random() < 0.3:
            prompt = [{"role": "system", "content": "Be brief."}, *prompt]
        rows.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": f"A good answer, number {number}."}],
                "rejected": [{"role": "assistant", "content": "No."}],
            }
        )
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_is_held_out_is_trained_by_any_method(seed, loaded):
    """Not by SFT on a file whose held-out rows measure DPO, either: all methods hold out the same rows."""
    rows = random_pairs(seed)
    splits = {method: loaded(rows, f"method={method}") for method in METHODS}
    for measured in splits.values():
        assert 12 <= len(data.group_pairs(measured.heldout)) <= 48
        heldout_prompts = set().union(*map(prompts, measured.heldout))
        heldout_answers = {
            text for row in measured.heldout for text in answers(row) if len(text) >= 24 or "good" in text
        }
        for trained in splits.values():
            assert not heldout_prompts & set().union(*map(prompts, trained.train))
            assert not heldout_answers & set().union(*map(answers, trained.train))


SPELLINGS = [
    str.upper,
    lambda text: f" {text}\n",
    lambda text: text.replace(" ", "\u00a0  "),
    lambda text: text.replace("Which", "\uff37hich"),  # full width
]


@pytest.mark.parametrize("spell", SPELLINGS)
def test_another_spelling_is_the_same_prompt(spell, loaded, write_rows):
    questions = [f"Which is the way to {number}?" for number in range(40)]
    rows = [
        {"prompt": prompt, "chosen": "yes", "rejected": "no"}
        for question in questions
        for prompt in (question, spell(question))
    ]
    splits = loaded(rows)
    assert len(splits.heldout) == 8
    known = {plain(form): plain(question) for question in questions for form in (question, spell(question))}

    def asked(rows: list[dict]) -> set[str]:
        return {known[plain(prompt_messages(row)[-1]["content"])] for row in rows}

    assert not asked(splits.train) & asked(splits.heldout)
    heldout_file = write_rows([rows[1]], "heldout.jsonl")
    splits = loaded(rows, f"data.eval_path={heldout_file}")
    assert len(splits.train) == 78
    assert dict(splits.dropped) == {"a prompt or a turn of it is held out": 2}


def test_a_conversation_cut_into_its_turns_stays_together(loaded):
    """Each exchange without what came before it, and the whole."""
    rows = []
    for number in range(60):
        turns = [
            {"role": role, "content": f"{role} {number}, turn {turn}"}
            for turn in range(3)
            for role in ("user", "assistant")
        ]
        rows += [{"messages": turns}, *({"messages": list(turns[at : at + 2])} for at in (0, 2, 4))]
    splits = loaded(rows, "method=sft")
    numbers = [
        {row["messages"][0]["content"].split()[1] for row in part} for part in (splits.train, splits.heldout)
    ]
    assert not numbers[0] & numbers[1] and len(numbers[1]) > 2


def test_a_formula_joins_no_conversations(loaded):
    """One refusal answers every prompt, and "yes" many: each prompt is still on its own."""
    refusal = "I am sorry, but I cannot help you with that request."
    rows = [{"prompt": f"Q{number}", "chosen": refusal, "rejected": "yes"} for number in range(300)]
    assert len(loaded(rows).heldout) == 30
    few = [
        {"messages": [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": refusal}]}
        for number in range(MAX_COMMON_ROWS)
    ]
    splits = loaded(few, "method=sft")  # of few rows, what each of them says joins them all
    assert (len(splits.train), splits.heldout) == (MAX_COMMON_ROWS, [])


def test_where_all_is_joined_nothing_is_held_out(loaded):
    opening = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    rows = [
        {
            "messages": [
                *opening,
                {"role": "user", "content": f"Q{number}"},
                {"role": "assistant", "content": "A"},
            ]
        }
        for number in range(30)
    ]
    splits = loaded(rows, "method=sft")
    assert (len(splits.train), splits.heldout) == (30, [])


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("own_file", [False, True])
def test_the_rows_that_are_measured_are_a_sample_of_a_sorted_file(method, own_file, loaded, write_rows):
    """Ten topics, one behind the other: 64 of the rows miss one of them in about one of 80 draws
    (10 * 0.9 ** 64), and the draw is fixed.
    """
    rows = [
        {"prompt": f"topic {number // 200}, question {number}", "chosen": "yes", "rejected": "no"}
        for number in range(2000)
    ]
    more = [f"data.eval_path={write_rows(rows, 'heldout.jsonl')}", "data.bad_rows=drop"] if own_file else []
    training = [{"prompt": "another", "chosen": "yes", "rejected": "no"}] if own_file else rows
    measured = take_groups(loaded(training, f"method={method}", *more).heldout, 64)
    topics = {row["prompt"][-1]["content"].split(",")[0] for row in measured}
    assert len(topics) >= 9


def test_a_short_run_sees_the_same_pairs_whatever_the_method(loaded):
    """12 steps of 4 pairs: 48 pairs, whole or in halves."""
    rows = [
        {"prompt": f"question {number}", "chosen": f"yes {number}", "rejected": "no"} for number in range(100)
    ]
    seen = {}
    for method in METHODS:
        splits = loaded(rows, f"method={method}", "training.max_steps=12", "training.global_batch=4")
        seen[method] = [json.dumps(prompt_messages(row)) for row in take_groups(splits.train, 48)]
    assert seen["kto"][::2] == seen["kto"][1::2] == seen["dpo"] == seen["sft"]
    assert len(seen["dpo"]) == 48


def components(rows: list[set[int]]) -> list[int]:
    """What `connected` says of rows by their keys."""
    owners = [index for index, keys in enumerate(rows) for _ in keys]
    keys = [key for row in rows for key in row]
    return connected(numpy.array(owners, int), numpy.array(keys, numpy.uint64), len(rows)).tolist()


def test_neighbors_of_one_component_share_a_number():
    """1-2 and 2-3: the first and the last row share nothing, and yet stand together."""
    assert components([{1}, {1, 2}, {9}, {2}]) == [0, 0, 2, 0]
    assert components([{1}, {2}, set(), {3}]) == [0, 1, 2, 3]
    assert components([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_of_one_component_where_a_path_of_shared_keys_joins_them(seed):
    generator = random.Random(seed)
    count = generator.choice([5, 60, 400])
    rows = [{generator.randrange(2 * count) for _ in range(generator.randrange(4))} for _ in range(count)]
    expected = list(range(count))  # each round: the lowest number among all rows that share a key
    while True:
        lowest = {
            key: min(expected[i] for i, row in enumerate(rows) if key in row) for key in set().union(*rows)
        }
        better = [
            min([number, *(lowest[key] for key in row)]) for number, row in zip(expected, rows, strict=True)
        ]
        if better == expected:
            break
        expected = better
    assert components(rows) == expected
