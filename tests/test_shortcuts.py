"""Rules without understanding, on pairs of which it is known how often each is right."""

from __future__ import annotations

import random

import pytest

from alignment_lab.data import shortcuts
from alignment_lab.data.shortcuts import MIN_PAIRS, is_refusal

WORDS = [
    "river",
    "stone",
    "cloud",
    "lamp",
    "garden",
    "window",
    "table",
    "bread",
    "silver",
    "motor",
    "paper",
    "bridge",
]


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": [{"role": "user", "content": prompt}]} | {
        key: [{"role": "assistant", "content": text}] for key, text in answers.items()
    }


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def measured(rows, *more) -> dict:
    return {found.name: found for found in shortcuts(rows, *more)}


def random_pairs(seed: int, count: int) -> list[dict]:
    rng = random.Random(seed)
    return [
        pair(f"Question {n}", *(sentence(rng, rng.randint(5, 30)) for _ in range(2))) for n in range(count)
    ]


@pytest.mark.parametrize(
    ("rule", "mark"),
    [
        ("the longer one", "{} and so on"),
        ("more list items", "{}\n- one\n- two"),
        ("more list items", "{}\n1. one\n2) two"),
        ("more headings", "## A heading\n{}"),
        ("more bold, code, tables, links", "**Well**, {}"),
        ("more bold, code, tables, links", "```\n{}\n```"),
        ("its words alone", "{} certainly"),
    ],
)
def test_a_rule_that_the_pairs_follow_is_always_right_and_of_swapped_pairs_never(rule, mark):
    rng = random.Random(5)
    texts = [sentence(rng, 12) for _ in range(120)]
    rows = [pair(f"Question {n}", mark.format(text), text) for n, text in enumerate(texts)]
    found = measured(rows)[rule]
    assert (found.share, found.undecided, found.pairs) == (1.0, 0, 120)
    assert 0.95 < found.low < found.high == 1.0
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    if rule == "its words alone":  # it learns from the pairs that less of the word is better
        assert measured(swapped)[rule].share == 1.0
    else:
        assert measured(swapped)[rule].share == 0.0


def test_of_random_pairs_every_interval_holds_one_half_as_often_as_it_says():
    """Rules of form see nothing in half of them; 20 sets, of which one may miss by chance."""
    sets = [measured(random_pairs(seed, 200)) for seed in range(20)]
    for rule in ("the longer one", "its words alone"):
        assert sum(found[rule].low <= 0.5 <= found[rule].high for found in sets) >= 18
    undecided = sets[0]["more headings"]
    assert (undecided.share, undecided.low, undecided.high, undecided.undecided) == (0.5, 0.5, 0.5, 200)


def test_the_classifier_is_tested_on_pairs_that_it_did_not_learn_from():
    """Words that are different in every pair teach nothing of another."""
    rows = [pair(f"Question {n}", f"only{n} good{n}", f"other{n} bad{n}") for n in range(100)]
    assert measured(rows)["its words alone"].share == 0.5
    same_prompt = [
        pair(f"Question {n % 10}", f"good{n % 10} a", f"bad{n % 10} a") for n in range(100)
    ]  # the pairs of a prompt are in one fold
    assert measured(same_prompt)["its words alone"].share == 0.5


def test_held_out_pairs_are_judged_by_what_the_training_pairs_teach():
    rows = [pair(f"Question {n}", f"gladly {n}", f"hardly {n}") for n in range(80)]
    assert measured(rows[:9], rows)["its words alone"].share == 1.0
    assert "its words alone" not in measured(rows, rows[: MIN_PAIRS - 1])
    assert measured(rows)["its words alone"] == measured(rows)["its words alone"]


def test_rows_of_one_prompt_are_one_draw():
    """Ten prompts with twenty equal rows each say as much as ten rows."""
    rng = random.Random(1)
    texts = [sentence(rng, 9) for _ in range(10)]
    rows = [pair(f"Q{n}", *((t + " more", t) if n < 6 else (t, t + " more"))) for n, t in enumerate(texts)]
    few, many = (measured(rows * repeats)["the longer one"] for repeats in (1, 20))
    assert few.share == many.share == 0.6
    assert (many.low, many.high) == pytest.approx((few.low, few.high), abs=0.03)


def test_without_pairs_there_is_nothing_to_say():
    assert shortcuts([]) == shortcuts([{"text": "a"}, {"messages": []}]) == []
    one = measured([pair("Q", "longer", "short")])["the longer one"]
    assert (one.share, one.low, one.high, one.pairs) == (1.0, 0.0, 1.0, 1)


def test_a_pair_that_was_made_a_conversation_still_counts():
    row = pair("Q", "longer", "short")
    assert shortcuts([row | {"messages": row["prompt"] + row["chosen"]}]) == shortcuts([row])


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can\u2019t help with that.", True),
        ("I cannot assist with this request.", True),
        ("As an AI language model, I don't have feelings.", True),
        ("I apologize, I am unable to open links.", True),
        ("Sorry for the wait! Paris is the capital.", False),
        ("You can't divide by zero, as this shows.", False),
        ("First, melt the butter. " * 20 + "I cannot say more.", False),
    ],
)
def test_what_counts_as_a_refusal(text, refuses):
    assert is_refusal(text) is refuses
    if refuses:
        good, bad = pair("Q", "The answer is 4.", text), pair("Q", text, "The answer is 4.")
        name = "the one that is no refusal"
        assert [measured([row])[name].share for row in (good, bad)] == [1.0, 0.0]
