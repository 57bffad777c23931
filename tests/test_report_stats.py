"""The arithmetic of comparisons, against numbers derived by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from alignment_lab.report.study import crossed, stats
from alignment_lab.runtime import distributions
from alignment_lab.runtime.cluster_means import influence
from benchmarks import statistics as simulated


@pytest.mark.parametrize("t", [0.01, 0.5, 1.0, 3.0, 12.0])
def test_students_tails_where_they_have_a_formula(t: float) -> None:
    """One degree of freedom is Cauchy's: 1 - 2/pi atan t. Two: 1 - t / sqrt(2 + t^2). Four: by integration of
    (1 + t^2/4)^(-5/2)."""
    assert distributions.two_sided_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-12)
    assert distributions.two_sided_p(t, 2) == pytest.approx(
        1 - t / math.sqrt(2 + t * t), rel=1e-12, abs=1e-15
    )
    sine = t / math.sqrt(4 + t * t)
    assert distributions.two_sided_p(t, 4) == pytest.approx(
        1 - (1.5 * sine - 0.5 * sine**3), rel=1e-9, abs=1e-14
    )


def test_quantiles() -> None:
    """One: tan(0.95 pi/2) = 12.7062. Two: q sqrt(2) / sqrt(1 - q^2) with q = 0.95, 4.30265. Many: the
    normal's 1.95996."""
    assert distributions.t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-9)
    assert distributions.t_quantile(2) == pytest.approx(
        0.95 * math.sqrt(2) / math.sqrt(1 - 0.95**2), rel=1e-9
    )
    assert distributions.t_quantile(1e7) == pytest.approx(1.959964, abs=1e-5)


def test_the_mean_of_three() -> None:
    """1, 2, 3: sd 1, standard error 1/sqrt(3), t(2) = 4.30265: 2 +- 2.48414. Against 0: t = 3.4641, p = 1 -
    3.4641/sqrt(14) = 0.07418."""
    estimate = stats.mean([1.0, 2.0, 3.0])
    assert estimate.ci95 == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert (estimate.value, estimate.n) == (2.0, 3) and estimate.p == pytest.approx(0.07418, abs=1e-5)


def test_pairs_lose_what_they_share() -> None:
    """3-2, 5-3, 7-4 are 1, 2, 3. Unpaired, the same numbers vary so much that nothing is seen."""
    estimate = stats.paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    assert estimate == stats.mean([1.0, 2.0, 3.0])
    assert estimate.p < stats.welch_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0]).p  # type: ignore[operator]


def test_samples_that_are_not_paired() -> None:
    """0, 2 and 4, 6: variances 2, error sqrt(2/2 + 2/2), (1+1)^2/(1+1) = 2 degrees: -4 +- 4.30265 sqrt(2); p
    = 1 - sqrt(8/10)."""
    estimate = stats.welch_difference([0.0, 2.0], [4.0, 6.0])
    assert estimate.value == -4.0 and estimate.n == 2
    assert estimate.ci95 == pytest.approx((-4 - 6.08487, -4 + 6.08487), abs=1e-4)
    assert estimate.p == pytest.approx(1 - math.sqrt(0.8), rel=1e-9)


def test_the_degrees_of_freedom_lie_between_the_smaller_sample_and_both() -> None:
    """One sample without spread adds none: Welch's degrees are the other one's, and the test is that of one
    sample."""
    estimate = stats.welch_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0])
    assert estimate.ci95 == pytest.approx(stats.mean([1.0, 2.0, 3.0]).ci95)


def test_what_cannot_be_told_is_none() -> None:
    """One value has no interval; equal values have no spread to judge by, however many; equal sides differ by
    nothing."""
    assert stats.mean([0.7]) == stats.Estimate(0.7, None, None, 1)
    assert stats.welch_difference([0.7], [0.5, 0.6]).p is None
    assert stats.paired_difference([0.7, 0.8], [0.5, 0.6]) == stats.Estimate(
        pytest.approx(0.2), None, None, 2
    )
    assert stats.paired_difference([0.7, 0.8], [0.7, 0.8]).p == 1.0
    assert stats.welch_difference([1.0, 1.0], [0.5, 0.5]) == stats.Estimate(0.5, None, None, 2)


def test_the_exact_sign_test() -> None:
    """Five pluses, one minus, zeros aside: 2 (C(6,0) + C(6,1)) / 2^6 = 14/64. Nothing but zeros: 1.

    Six of six: 2/64.
    """
    assert stats.sign_test([1, 1, 1, 1, 1, -1, 0, 0]) == 14 / 64
    assert stats.sign_test([0, 0]) == 1.0
    assert stats.sign_test([-1] * 6) == 2 / 64


def test_holm() -> None:
    """0.01, 0.04, 0.03: 3 x 0.01, then 2 x 0.03, then 1 x 0.04, which may not fall below 0.06."""
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.6, 0.5]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_holm_of_a_part_is_never_below_holm_of_all() -> None:
    """0.001 and 0.02 of five: 5 x 0.001 and 4 x 0.02.

    With all five at hand 0.02 is third, and multiplied by 3.
    """
    everything = [0.001, 0.02, 0.004, 0.5, 0.9]
    part = stats.holm(everything[:2], family_size=5)
    assert part == pytest.approx([0.005, 0.08])
    assert all(mine >= all_of_it for mine, all_of_it in zip(part, stats.holm(everything), strict=False))


def at_most(percent: float, studies: int) -> float:
    """What a true rate of `percent` shows at most in 999 of 1000 samples of so many studies: 3.09 standard
    errors of the binomial, and a continuity correction."""
    return percent + 309 * math.sqrt(percent / 100 * (1 - percent / 100) / studies) + 50 / studies


@pytest.mark.parametrize("seeds", [2, 3, 10])
@pytest.mark.parametrize("world", simulated.WORLDS[2:9:2], ids=lambda world: world.name)
def test_nothing_is_significant_more_often_than_it_says(world: simulated.World, seeds: int) -> None:
    """Where nothing differs on the population of prompts and seeds, 5 % of studies are false alarms and 5 %
    of means miss the truth, give or take 1.5."""
    rates = simulated.simulate(world, seeds, studies=250)
    assert rates.false_alarms <= at_most(6.5, 250)
    assert 100 - rates.covered <= at_most(6.5, 250)


def test_seeds_alone_would_be_wrong_far_more_often() -> None:
    """The bound of the test above could fail: the paired test of ten seeds does, as prompts differ."""
    rates = simulated.simulate(simulated.WORLDS[2], 10, studies=250)
    assert rates.over_seeds > at_most(30, 250)


def test_a_difference_that_is_there_is_found() -> None:
    """Three seeds, 64 prompts, normal values: a difference of four standard errors over prompts, of which
    Student's test with 63 degrees of freedom finds 97 %."""
    chance = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        prompts = chance.normal(4 / 8, 1, 64)
        ours = [influence(prompts + chance.normal(0, 0.1, 64), np.ones(64)) for _ in range(3)]
        theirs = [influence(chance.normal(0, 0.1, 64), np.ones(64)) for _ in range(3)]
        p = crossed.paired_difference(*(crossed.seed_sample(side, ()) for side in (ours, theirs))).p
        found += p is not None and p < 0.05
    assert 200 - found <= 2 * at_most(4, 200)


@pytest.mark.parametrize("prompts", [8, 64])
@pytest.mark.parametrize("name", [name for name in simulated.INTERVALS if "skewed" not in name])
def test_intervals_of_rows_hold_the_truth_as_often_as_they_say(name: str, prompts: int) -> None:
    """95 % and more, give or take 1.5; numbers that are skewed are told apart in docs/STATISTICS.md."""
    assert 100 - simulated.coverage(name, prompts, studies=250) <= at_most(6.5, 250)


def test_the_page_of_rates_takes_its_tables_and_keeps_its_text() -> None:
    page = simulated.PAGE.read_text()
    tables = dict(re.findall(r"<!-- ([a-z ]+) -->\n(.*?)\n<!-- /\1 -->", page, re.DOTALL))
    assert simulated.with_tables(page, tables) == page
    assert "X" in simulated.with_tables(page, {"means": "X"}) and page.endswith("rely on.\n")
    assert {line.split("|")[1].strip() for line in tables["rows"].splitlines()[2:]} == set(
        simulated.INTERVALS
    )
