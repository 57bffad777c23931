"""Intervals by hand, and what counts as a right answer."""

import math

import pytest

from alignment_lab.evaluation.answers import is_correct, score_answers
from alignment_lab.evaluation.intervals import Scores, before_after
from alignment_lab.runtime.distributions import exact_share_interval
from alignment_lab.runtime.text_counts import count_sentences


def test_mean_and_its_interval_by_hand():
    """1, 2, 3, 4: mean 2.5, sd sqrt(5/3) = 1.290994, standard error 0.645497, t(3) = 3.182446: half width
    2.054260."""
    found = Scores([1.0, 2.0, 3.0, 4.0]).estimate()
    assert found["value"] == 2.5
    assert (found["n"], found["prompts"]) == (4, 4)
    assert found["ci95"] == pytest.approx([0.445740, 4.554260], abs=1e-5)


def test_weighted_mean_is_the_ratio_of_sums():
    """Losses 2, 9 over 1, 3 tokens: 11 / 4 = 2.75. Errors -0.75 / 4 / sqrt(3/4) and 0.75 / 4 / sqrt(1/4):
    their squares add up to 0.046875 + 0.140625. One degree of freedom: t = 12.706205."""
    scores = Scores([2.0, 9.0], [1.0, 3.0])
    assert scores.mean == 2.75
    low, high = scores.estimate()["ci95"]
    assert (high - low) / 2 == pytest.approx(12.706205 * math.sqrt(0.1875), rel=1e-5)


def test_exact_shares_by_their_published_examples():
    """Newcombe 1998, table I, method 5: 81 of 263 gives 0.2527 to 0.3676, 15 of 148 gives 0.0578 to 0.1617,
    0 of 20 gives 0 to 0.1684, 1 of 29 gives 0.0009 to 0.1776."""
    for successes, count, bounds in (
        (81, 263, (0.2527, 0.3676)),
        (15, 148, (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1684)),
        (1, 29, (0.0009, 0.1776)),
    ):
        assert exact_share_interval(successes, count) == pytest.approx(bounds, abs=6e-5)


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_one_prompt_are_one_draw(times, weighted):
    """Every row written several times says nothing new: value and interval stay."""
    values, weights = [3.0, 9.0, 4.0, 7.0], [1.0, 4.0, 1.0, 2.0] if weighted else None
    once = Scores(values, weights, prompts=list("abcd")).estimate()
    again = Scores(values * times, weights and weights * times, prompts=list("abcd") * times).estimate()
    assert again["ci95"] == pytest.approx(once["ci95"])
    assert (again["n"], again["prompts"]) == (4 * times, 4)


@pytest.mark.parametrize("values", [[1.0] * 20, [0.0] * 20, [1.0] * 19 + [0.5], [0.5] * 20, [1.0, 0.0] * 10])
@pytest.mark.parametrize("rows_of_a_prompt", [1, 2, 4])
def test_a_share_stays_in_its_range_and_is_never_certain(values, rows_of_a_prompt):
    """Ties and several rows of a prompt included; fewer prompts never narrow it."""
    prompts = [place // rows_of_a_prompt for place in range(20)]
    low, high = Scores(values, share=True, prompts=prompts).estimate()["ci95"]
    assert 0 <= low < high <= 1
    assert high - low >= 0.16, "of 20 rows, the narrowest is that of none or all"


def test_rows_without_spread_have_no_interval():
    assert Scores([2.0] * 5).estimate()["ci95"] is None
    assert Scores([1.0, 2.0, 3.0], prompts=["a"] * 3).estimate()["ci95"] is None, "one prompt"


@pytest.mark.parametrize("values", [[], [0.7]])
def test_no_interval_of_fewer_than_two_rows(values):
    found = Scores(values).estimate()
    assert found["ci95"] is None
    assert found["value"] == 0.7 if values else math.isnan(found["value"])


def test_before_and_after_keep_what_only_one_side_has():
    found = before_after({"a": Scores([1.0])}, {"b": Scores([2.0])})
    assert found["a"]["after"] is None
    assert found["b"]["before"] is None


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        ("It is Paris.", ["Paris"], True),
        ("it is PARIS", ["Paris"], True),
        ("a parisian cafe", ["Paris"], False),
        ("8 legs", ["eight", "8"], True),
        ("80 legs", ["8"], False),
        ("the C++ language", ["C++"], True),
        ("anything", None, None),
    ],
)
def test_correct(text, accepted, right):
    assert is_correct(text, accepted) is right


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("Paris", 1), ("It is 3.5 km.", 1), ("One. Two!", 2), ("Wait... what?", 2)]
)
def test_sentences(text, count):
    assert count_sentences(text) == count


def test_measure_leaves_out_what_the_data_does_not_know():
    rows = [{"answer": ["Paris"]}, {}]
    assert "answers/correct" not in score_answers(["a"], [{}])
    assert score_answers(["It is Paris.", "Well. Now."], rows)["answers/correct"].values == [1.0]
    assert score_answers(["It is Paris.", "Well. Now."], rows)["answers/one_sentence"].mean == 0.5
