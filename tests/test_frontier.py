"""Reward against KL: a planted difference at equal KL is found, none is made up, unlike sets do not mix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_report import make_run, spec

from alignment_lab.report.__main__ import main
from alignment_lab.report.study.frontier import (
    KL,
    Curve,
    Frontier,
    Point,
    band,
    compare_at_equal_kl,
    find_frontier,
)
from alignment_lab.report.study.runs import find_runs, load_records

GOLD = "sampled/correct"
SEEDS = (1, 2, 3)


def reward(kl: float) -> float:
    """What every method reaches, as overoptimization has it: up, and down again."""
    return 0.3 + 0.12 * math.sqrt(kl) - 0.02 * kl


def evaluate(run: Any, step: int | str | None, kl: float, gold: float, **settings: Any) -> None:
    """What an evaluation leaves with the run; `step` is "before" for the initial policy."""
    run.evaluations.mkdir(exist_ok=True)
    model = {
        "is_initial": step == "before",
        "step": step if isinstance(step, int) else None,
        "metrics": {KL: {"value": kl, "ci95": None, "n": 8}, GOLD: {"value": gold, "ci95": None, "n": 8}},
    }
    entry = {"ended": "2026-01-01", "rows_digest": {"preference": "a"}, "settings": {"rows": 64, **settings}}
    name = f"{len(list(run.evaluations.iterdir()))}.json"
    (run.evaluations / name).write_text(json.dumps({**entry, "path": "", "model": model}))


def sweep(folder: Path, advantage: float, noise: float = 0.01, reach: float = 1.0) -> Path:
    """Two methods at two strengths and three seeds, three checkpoints each. simpo gets to another KL in as
    many steps, and is above dpo by `advantage` at equal KL.
    """
    for method, pace, above in (("dpo", 1.0, 0.0), ("simpo", 2.5 * reach, advantage)):
        for beta in (0.1, 0.5):
            for seed in SEEDS:
                run = make_run(folder / f"{method}-{beta}-{seed}", spec(method, beta, seed=seed))
                evaluate(run, "before", 0.0, reward(0.0))
                for step in (4, 8, None):
                    kl = pace * (step or 12) * (0.1 if beta == 0.5 else 0.2) + 0.03 * seed
                    evaluate(run, step, kl, reward(kl) + above + noise * (seed - 2))
    return folder


def frontier_of(folder: Path) -> Frontier | None:
    return find_frontier(load_records(find_runs(folder)))


@pytest.mark.parametrize(
    ("advantage", "words"), [(0.05, "simpo is better than"), (-0.05, "dpo is better than")]
)
def test_a_planted_difference_is_found_whatever_the_pace(tmp_path, advantage, words):
    """At equal steps simpo is further from the reference, and its reward another for that alone."""
    found = frontier_of(sweep(tmp_path, advantage))
    assert found is not None and found.gold == GOLD
    assert {len(points) for curve in found.curves for points in curve.by_seed.values()} == {6}
    (sentence,) = found.sentences
    assert words in sentence
    assert "over 3 seeds" in sentence
    compared = compare_at_equal_kl(*sorted(found.curves, key=lambda curve: "dpo" in curve.label))
    assert compared is not None
    assert compared[0].value == pytest.approx(advantage, abs=0.01)


def test_no_difference_is_made_up_of_the_pace(tmp_path):
    found = frontier_of(sweep(tmp_path, 0.0))
    assert found is not None
    compared = compare_at_equal_kl(*found.curves)
    assert compared is not None and abs(compared[0].value) < 0.01


def curve(*by_seed: list[tuple[float, float]], start: float | None = None) -> Curve:
    return Curve(
        "m", {seed: [Point("", None, *pair) for pair in of] for seed, of in enumerate(by_seed)}, start
    )


def test_a_curve_by_hand():
    """Seeds through (0, 0), (2, 1) and (0, 0), (4, 4): from 0 to 2 they are kl/2 and kl, 0.75 kl on average;
    at 2 the values 1 and 2 have the mean 1.5 and Student's interval of two, 1.5 +- 12.7062 * 0.5.
    """
    found = band(curve([(0.0, 0.0), (2.0, 1.0)], [(0.0, 0.0), (4.0, 4.0)]))
    assert found is not None and found.low is not None and found.high is not None
    assert (found.kl[0], found.kl[-1]) == (0.0, 2.0)
    assert found.mean == pytest.approx([0.75 * kl for kl in found.kl])
    assert (found.low[-1], found.high[-1]) == pytest.approx((1.5 - 6.3531, 1.5 + 6.3531), abs=1e-3)


def test_equal_methods_are_said_to_be_equal(tmp_path):
    for method in ("dpo", "simpo"):
        for seed in SEEDS:
            run = make_run(tmp_path / f"{method}-{seed}", spec(method, 0.1, seed=seed))
            for kl in (1.0, 2.0):
                evaluate(run, int(kl), kl, 0.5)
    found = frontier_of(tmp_path)
    assert found is not None and "have the same" in found.sentences[0]


def test_methods_without_a_common_kl_are_not_ranked():
    near, far = curve([(0.5, 0.1), (1.0, 0.2)]), curve([(3.0, 0.9), (4.0, 1.0)])
    assert compare_at_equal_kl(near, far) is None
    assert band(curve([(0.5, 0.1)], [(3.0, 0.9)])) is None


def test_other_sets_are_left_out_and_told(tmp_path):
    folder = sweep(tmp_path, 0.05)
    before = frontier_of(folder)
    evaluate(make_run(folder / "dpo-0.1-9", spec("dpo", 0.1, seed=9)), None, 1.0, 99.0, rows=7)
    found = frontier_of(folder)
    assert before is not None and found is not None
    assert (found.left_out, found.sentences) == (1, before.sentences)


def test_it_is_the_first_figure_of_the_page_where_it_was_measured(tmp_path, capsys):
    assert main([str(sweep(tmp_path / "with", 0.05))]) == 0
    assert "At equal KL" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "with" / "report.html").read_text()
    assert 0 < page.index("Reward against KL</h2>") < page.index("By configuration")
    assert page.index("<svg") > page.index("Reward against KL</h2>")
    content = json.loads((tmp_path / "with" / "report.json").read_text())["reward_against_kl"]
    assert [len(each["points"]) for each in content["curves"]] == [18, 18]
    make_run(tmp_path / "without" / "a", spec("dpo", 0.1, seed=1))
    make_run(tmp_path / "without" / "b", spec("dpo", 0.1, seed=2))
    assert main([str(tmp_path / "without")]) == 0
    assert "Reward against KL</h2>" not in (tmp_path / "without" / "report.html").read_text()
