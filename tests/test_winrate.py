"""Win rates and length control: by hand, on planted effects, and on AlpacaEval 2's published judgments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignment_lab.evaluation.winrate import Preferences, both_orders, length_controlled, win_rate

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "alpaca_eval"


def planted(prompts: int, quality: float, slope: float, longer: float, seed: int = 0) -> Preferences:
    """0 or 1, by the regression's own model; the candidate is `longer` deviations longer on average."""
    generator = np.random.default_rng(seed)
    difference = generator.normal(longer, 1, prompts)
    chance = 1 / (1 + np.exp(-quality - slope * np.tanh(difference / difference.std(ddof=1))))
    values = (generator.random(prompts) < chance).astype(float)
    lengths = np.rint(1000 + 200 * difference).astype(int).tolist()
    return Preferences(values.tolist(), lengths, [1000] * prompts, range(prompts))


def test_a_win_rate_and_its_standard_error_by_hand():
    """1, 1, 0.5, 0: mean 0.625; squares of deviations 0.140625 * 2 + 0.015625 + 0.390625 = 0.6875, by 3 and
    by 4 and its root: 0.239357."""
    found = win_rate(Preferences([1.0, 1.0, 0.5, 0.0], [9] * 4, [9] * 4, "abcd"))
    assert (found.value, found.standard_error) == (0.625, pytest.approx(0.239357, abs=1e-6))
    assert found.ci95[0] < 0.625 < found.ci95[1]


def test_a_judge_that_names_a_place_ends_at_one_half():
    assert both_orders([1.0, 1.0], [0.0, 0.0]) == [0.5, 0.5]


@pytest.mark.parametrize("prompts", [8, 64, 200])
def test_an_identical_pair_is_one_half_within_its_interval(prompts):
    """Verdicts that depend on chance alone, 20 draws of two figures: at most 5 intervals leave out 0.5."""
    missed = 0
    for seed in range(20):
        pairs = planted(prompts, 0.0, 0.0, 0.0, seed)
        for rate in (win_rate(pairs, resamples=200), length_controlled(pairs, resamples=200)):
            missed += not rate.ci95[0] <= 0.5 <= rate.ci95[1]
    assert missed <= 5


@pytest.mark.parametrize("cross_validated", [False, True])
def test_swapping_the_two_mirrors_every_figure(cross_validated):
    pairs = planted(150, 0.4, 1.0, 0.5)
    for rate in (win_rate, lambda p: length_controlled(p, cross_validated=cross_validated, resamples=200)):
        one, other = rate(pairs), rate(pairs.swapped())
        assert one.value == pytest.approx(1 - other.value, abs=1e-6)
        assert one.ci95 == pytest.approx((1 - other.ci95[1], 1 - other.ci95[0]), abs=1e-5)
        assert one.standard_error == pytest.approx(other.standard_error, abs=1e-6)


def test_length_control_removes_a_planted_length_effect_and_leaves_a_planted_quality_effect():
    """Quality 0 is 0.5 at equal lengths, and quality 1 is 0.731."""
    only_longer = planted(3000, 0.0, 2.0, 1.0)
    assert win_rate(only_longer).value > 0.65
    found = length_controlled(only_longer, resamples=200)
    assert found.ci95[0] < 0.5 < found.ci95[1]
    assert found.value == pytest.approx(0.5, abs=0.05) and found.slope == pytest.approx(2.0, abs=0.4)
    better = length_controlled(planted(3000, 1.0, 2.0, 1.0), resamples=200)
    assert better.value == pytest.approx(0.731, abs=0.04) and better.ci95[0] > 0.65


@pytest.mark.parametrize("values", [[1.0] * 12, [0.0] * 12, [0.5] * 12])
@pytest.mark.parametrize("alike", [True, False])
def test_where_all_verdicts_agree_nothing_is_certain_or_fails(values, alike):
    """Lengths that are all alike control nothing: both figures are the same."""
    lengths = [50] * 12 if alike else list(range(40, 52))
    pairs = Preferences(values, lengths, [50] * 12, range(12))
    low, high = win_rate(pairs).ci95
    assert 0 <= low < high <= 1
    assert length_controlled(pairs).value == pytest.approx(values[0], abs=1e-3)


def test_pairs_of_one_prompt_are_one_draw():
    once = planted(40, 0.5, 1.0, 0.3)
    columns = (once.values, once.candidate_lengths, once.baseline_lengths, once.prompts)
    again = Preferences(*(list(each) * 3 for each in columns))
    for rate in (win_rate, length_controlled):
        assert rate(again).value == pytest.approx(rate(once).value, abs=2e-3)
        assert rate(again).standard_error == pytest.approx(rate(once).standard_error, rel=0.02)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_prompts_have_no_interval(count):
    pairs = Preferences([1.0] * count, [3] * count, [4] * count, range(count))
    assert win_rate(pairs).ci95 is None and length_controlled(pairs).ci95 is None


@pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="needs the published judgments in ../shared/data/alpaca_eval"
)
def test_published_win_rates_their_errors_and_alpaca_evals_own_regression():
    """In points of percent. alpaca_eval's figures are those of its `length_controlled_minimal`, which
    `python -m benchmarks.winrate DATA --alpaca-eval` writes."""
    from benchmarks.winrate import ORACLE, figures

    found = figures(PUBLISHED)
    assert len(found) == len(json.loads(ORACLE.read_text())["length_controlled_minimal"]) == 57
    for model, row in found.items():
        assert row["penalized"] == pytest.approx(row["alpaca_eval"], abs=0.1), model
        if "published_win_rate" in row:
            assert row["win_rate"] == pytest.approx(row["published_win_rate"], abs=1e-5), model
            assert row["standard_error"] == pytest.approx(row["published_standard_error"], abs=1e-5), model
