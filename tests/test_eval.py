"""Intervals by hand, and what counts as a right answer."""

import math

import pytest

from alignment_lab.evaluation.answers import is_correct, score_answers
from alignment_lab.evaluation.intervals import Scores, before_after, wilson
from alignment_lab.runtime.text_counts import count_sentences


def test_mean_and_its_interval_by_hand():
    """1, 2, 3, 4: mean 2.5, sd sqrt(5/3) = 1.290994, standard error 0.645497, half width 1.959964 * 0.645497
    = 1.265151."""
    found = Scores([1.0, 2.0, 3.0, 4.0]).estimate()
    assert found["value"] == 2.5
    assert found["n"] == 4
    assert found["ci95"] == pytest.approx([1.234849, 3.765151], abs=1e-6)


def test_weighted_mean_is_the_ratio_of_sums():
    """Losses 2, 9 over 1, 3 tokens: 11 / 4 = 2.75. Residuals 2 - 2.75 = -0.75 and 9 - 8.25 = 0.75; sqrt(1.125
    / 2) / 2 = 0.375."""
    scores = Scores([2.0, 9.0], [1.0, 3.0])
    assert scores.mean == 2.75
    low, high = scores.estimate()["ci95"]
    assert (high - low) / 2 == pytest.approx(1.959964 * 0.375, abs=1e-6)


def test_wilson_by_its_published_example():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson(0, 20) == pytest.approx([0.0, 0.1611], abs=5e-5)


def test_a_share_takes_wilson_and_ties_do_not():
    assert Scores([1.0] * 20, share=True).estimate()["ci95"] == pytest.approx([1 - 0.1611, 1.0], abs=5e-5)
    assert Scores([0.5] * 20, share=True).estimate()["ci95"] == [0.5, 0.5]


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
