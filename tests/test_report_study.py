"""Which differences a comparison calls more than noise, what it cannot tell, and what it leaves out."""

from __future__ import annotations

import csv
import io
import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_floors import PACKAGE, imported
from test_report import METRICS, estimate, make_run, rendered, spec

from alignment_lab.config import objective_of
from alignment_lab.config.metrics import ANSWERS, EVAL, IMPLICIT, Direction, Metric
from alignment_lab.config.metrics import METRICS as TABLE
from alignment_lab.evaluation import prompts as evaluation_prompts
from alignment_lab.evaluation.intervals import Scores
from alignment_lab.report.__main__ import main
from alignment_lab.report.render import files, page_samples, terminal, words
from alignment_lab.report.render.comparison_page import write_comparison_page
from alignment_lab.report.render.page_data import page_data
from alignment_lab.report.render.terminal_comparison import render_comparison
from alignment_lab.report.study import crossed, drift, row_scores, stats
from alignment_lab.report.study.comparison import Comparison, compare
from alignment_lab.report.study.hardware import describe_hardware
from alignment_lab.report.study.runs import find_runs, load_records
from alignment_lab.report.study.settings import varied_keys
from alignment_lab.report.study.values import ordered_metrics, summary_metrics
from alignment_lab.runtime.cluster_means import influence
from alignment_lab.runtime.run_directory import RunDirectory

CORRECT = "answers/correct"
STUDY = PACKAGE / "report" / "study"


def seeded(folder: Path, values: dict[Any, list[float]], metric: str = CORRECT, **more: Any) -> None:
    """A run for each beta and each of its values: seeds count from 1."""
    for beta, seed_values in values.items():
        for seed, value in enumerate(seed_values, 1):
            metrics = {metric: {"before": estimate(0.1), "after": estimate(value)}, **more}
            make_run(folder / f"b{beta}s{seed}", spec(beta=beta, seed=seed), metrics=metrics)


def compare_runs(folder: Path, **options: Any) -> Comparison:
    return compare(load_records(find_runs(folder)), **options)


def sentences(comparison: Comparison) -> str:
    return " ".join(words.findings(comparison))


def test_seeds_are_put_together(tmp_path: Path) -> None:
    """0.6 and 0.8: mean 0.7, sd 0.1414, error 0.1, t(1) = 12.706: 0.7 +- 1.27, which of a share is [0, 1]."""
    seeded(tmp_path, {0.1: [0.6, 0.8]})
    (configuration,) = compare_runs(tmp_path).configurations
    assert configuration.label == "every seed" and configuration.seeds == [1, 2]
    mean = configuration.mean(CORRECT)
    assert mean and mean.value == pytest.approx(0.7) and mean.ci95 == (0.0, 1.0)
    shown = configuration.measured(CORRECT)
    assert shown and tuple(shown["ci95"]) == (0.0, 1.0) and shown["unit"] == "seeds"


def test_pairing_by_seed_sees_what_the_spread_of_seeds_hides(tmp_path: Path) -> None:
    """Seeds move both by tenths; the difference is 0.10, 0.11, 0.12 for each of them: mean 0.11, error
    0.00577, t = 19.05, p = 0.0027."""
    seeded(tmp_path, {0.1: [0.5, 0.6, 0.7], 0.01: [0.4, 0.49, 0.58]})
    comparison = compare_runs(tmp_path)
    assert comparison.reference and comparison.reference.label == "beta=0.1" and comparison.reference_is_best
    (verdict,) = comparison.verdicts[CORRECT].values()
    assert verdict.basis == "paired by seed" and verdict.outcome == "lower"
    assert (
        verdict.p == pytest.approx(1 - 19.0526 / (2 + 19.0526**2) ** 0.5, rel=1e-3)
        and comparison.family_size(CORRECT) == 1
    )


def test_seeds_that_are_not_shared_are_not_paired(tmp_path: Path) -> None:
    seeded(tmp_path, {0.1: [0.5, 0.6, 0.7]})
    for seed, value in ((7, 0.4), (8, 0.49)):
        metrics = {CORRECT: {"before": None, "after": estimate(value)}}
        make_run(tmp_path / f"s{seed}", spec(beta=0.01, seed=seed), metrics=metrics)
    (verdict,) = compare_runs(tmp_path).verdicts[CORRECT].values()
    assert verdict.basis == "seeds not paired" and verdict.outcome == "noise"


def test_one_seed_cannot_tell_and_says_so(tmp_path: Path) -> None:
    seeded(tmp_path, {0.1: [0.9], 0.01: [0.1]})
    comparison = compare_runs(tmp_path)
    assert [verdict.outcome for verdict in comparison.verdicts[CORRECT].values()] == ["one seed"]
    assert "One seed cannot show" in sentences(comparison) and "Holm" not in sentences(comparison)
    shown = rendered(lambda console: terminal.show(render_comparison(comparison, 120), console), 120)
    assert "one seed: cannot tell" in shown


def test_equal_differences_of_all_seeds_are_no_proof(tmp_path: Path) -> None:
    """Every seed gives the same numbers, as where seeds change nothing: there is no spread to judge a
    difference by."""
    seeded(tmp_path, {0.1: [0.5, 0.5], 0.01: [0.25, 0.25]})
    (verdict,) = compare_runs(tmp_path).verdicts[CORRECT].values()
    assert verdict.outcome == "no spread" and verdict.p is None


def test_the_best_is_corrected_for_all_pairs_and_a_baseline_for_its_own(tmp_path: Path) -> None:
    """Four configurations are six pairs; against a chosen one there are three comparisons."""
    seeded(tmp_path, {beta: [beta, beta * 1.02, beta * 1.1] for beta in (0.1, 0.2, 0.3, 0.4)})
    best, chosen = compare_runs(tmp_path), compare_runs(tmp_path, baseline="beta=0.1")
    assert (best.family_size(CORRECT), chosen.family_size(CORRECT)) == (6, 3)
    assert "all 6 pairs" in sentences(best) and "3 comparisons with the baseline" in sentences(chosen)
    assert (
        best.reference
        and best.reference.label == "beta=0.4"
        and chosen.reference
        and chosen.reference.label == "beta=0.1"
    )


def test_a_correction_can_take_significance_away(tmp_path: Path) -> None:
    """Differences 0.02, 0.03, 0.04: t = 5.196, p = 0.035. Alone significant; as one of three pairs, 0.104, it
    is not."""
    values = {0.3: [0.5, 0.5, 0.5], 0.2: [0.48, 0.47, 0.46]}
    seeded(tmp_path / "two", values)
    seeded(tmp_path / "three", {**values, 0.1: [0.5, 0.2, 0.4]})
    assert compare_runs(tmp_path / "two").verdicts[CORRECT]["beta=0.2"].outcome == "lower"
    corrected = compare_runs(tmp_path / "three").verdicts[CORRECT]["beta=0.2"]
    assert corrected.outcome == "noise" and corrected.p == pytest.approx(3 * 0.0351, abs=1e-3)


def test_a_baseline_may_be_named_by_words_or_by_a_cell(tmp_path: Path) -> None:
    seeded(tmp_path, {0.1: [0.5], 0.01: [0.4]})
    for name in ("beta=0.01", "0.01", "b0.01s1"):
        comparison = compare_runs(tmp_path, baseline=name)
        assert (
            comparison.reference
            and comparison.reference.label == "beta=0.01"
            and not comparison.reference_is_best
        )


@pytest.mark.parametrize(
    ("option", "why"),
    [(["--baseline", "ppo"], "no such configuration"), (["--metric", "bleu"], "no run measured it")],
)
def test_a_name_of_nothing_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], why: str
) -> None:
    seeded(tmp_path, {0.1: [0.5], 0.01: [0.4]})
    assert main([str(tmp_path), *option]) == 2
    assert why in capsys.readouterr().err


def test_losses_of_unlike_objectives_are_not_compared(tmp_path: Path) -> None:
    seeded(tmp_path, {0.1: [0.5, 0.6], 0.01: [0.4, 0.3]}, eval_loss=METRICS["eval_loss"])
    comparison = compare_runs(tmp_path)
    assert {verdict.outcome for verdict in comparison.verdicts["eval_loss"].values()} == {"own scale"}


def test_what_each_method_defines_for_itself_is_not_ranked(tmp_path: Path) -> None:
    """The method's own accuracies say that SimPO is better, the common ones that both are alike."""
    own, common = f"{EVAL}rewards/accuracies", f"{EVAL}{IMPLICIT}accuracies"
    for method, own_share in (("dpo", 0.5), ("simpo", 1.0)):
        metrics = {name: {"before": None, "after": estimate(value)} for name, value in ((own, own_share),)}
        make_run(tmp_path / "own" / method, spec(method), metrics=metrics)
        alike = metrics | {common: {"before": None, "after": estimate(0.75)}}
        make_run(tmp_path / "both" / method, spec(method), metrics=alike)
    comparison = compare_runs(tmp_path / "own")
    assert comparison.headline is None and comparison.reference is None
    assert f"Not ranked: {own} is on each method's own scale" in sentences(comparison)
    assert compare_runs(tmp_path / "both").headline == common
    asked = compare_runs(tmp_path / "both", metric=own)
    assert asked.reference is None and f"Not ranked: {own}" in sentences(asked)
    for folder, options in (("own", []), ("both", ["--metric", own])):
        assert main([str(tmp_path / folder), *options]) == 0
        assert "Not ranked" in (tmp_path / folder / "report.md").read_text()


def test_a_lower_loss_is_the_best_one(tmp_path: Path) -> None:
    for rate, values in ((1e-5, (0.5, 0.52)), (1e-6, (0.6, 0.61))):
        for seed, value in enumerate(values):
            metrics = {"eval_loss": {"before": None, "after": estimate(value)}}
            make_run(tmp_path / f"{rate}-{seed}", spec(learning_rate=rate, seed=seed), metrics=metrics)
    comparison = compare_runs(tmp_path)
    assert (
        comparison.reference
        and comparison.reference.label == "learning_rate=1e-05"
        and "has the lowest eval_loss" in sentences(comparison)
    )


def best_of_two(folder: Path, metric: str, lower: float = 0.2, higher: float = 0.6) -> float | None:
    """The value of the run that the report takes for the better one."""
    for rate, value in ((1e-5, lower), (1e-6, higher)):
        metrics = {metric: {"before": None, "after": estimate(value)}}
        make_run(folder / str(rate), spec(learning_rate=rate), metrics=metrics)
    comparison = compare_runs(folder, metric=metric)
    mean = comparison.reference and comparison.reference.mean(metric)
    assert comparison.reference_is_best and mean
    extreme = "lowest" if mean.value == lower else "highest"
    assert f"has the {extreme} {metric}" in sentences(comparison)
    return mean.value


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_report_and_search_agree_which_value_is_better(row: Metric, tmp_path: Path) -> None:
    """For every metric of the table, in the name that a report has it by."""
    name = row.name if row.name.startswith(ANSWERS) else f"{EVAL}{row.name}"
    spec: Any = SimpleNamespace(eval=SimpleNamespace(objective=name, direction=None))
    _, direction = objective_of(spec)
    assert best_of_two(tmp_path, name) == (0.2 if direction is Direction.minimize else 0.6)


def test_the_shortest_answers_are_the_best(tmp_path: Path) -> None:
    """As a search has it, which minimizes words."""
    assert best_of_two(tmp_path, "answers/words", 12.0, 48.0) == 12.0
    assert main([str(tmp_path), "--metric", "answers/words"]) == 0
    assert "has the lowest answers/words: 12.0" in (tmp_path / "report.md").read_text()


def test_metrics_are_in_the_order_of_the_table() -> None:
    names = ["mine", "answers/words", "eval_loss", "eval_logps/chosen", "other", "eval_accuracy"]
    ordered = ["eval_accuracy", "eval_loss", "answers/words", "eval_logps/chosen", "mine", "other"]
    assert ordered_metrics(names) == ordered
    assert summary_metrics(ordered) == ordered[:3]


# Row by row


def answers(right: list[bool]) -> list[dict[str, Any]]:
    return [
        {"prompt": f"q{place}", "before": "", "after": "One. Two." if good else "One.", "after_correct": good}
        for place, good in enumerate(right)
    ]


def answered(
    folder: Path, beta: float, right: list[bool], *, claimed: float | None = None, seed: int = 1
) -> None:
    value = sum(right) / len(right) if claimed is None else claimed
    run = make_run(
        folder / f"{beta}-{seed}",
        spec(beta=beta, seed=seed),
        metrics={CORRECT: {"before": None, "after": estimate(value)}},
    )
    run.write_samples(answers(right))


def test_rows_of_one_seed_are_paired(tmp_path: Path) -> None:
    """Ten prompts, eight of which only one model gets right, none only the other: 2/2^8 = 0.0078.

    Of other seeds that says nothing.
    """
    answered(tmp_path, 0.1, [True] * 9 + [False])
    answered(tmp_path, 0.01, [False] * 8 + [True, False])
    comparison = compare_runs(tmp_path)
    (verdict,) = comparison.verdicts[CORRECT].values()
    assert verdict.outcome == "one seed" and verdict.row_outcome == "lower" and verdict.row_p == 2 / 2**8
    assert (
        verdict.row_difference
        and verdict.row_difference.value == pytest.approx(-0.8)
        and verdict.row_difference.n == 10
    )
    assert "prompts like the 10 held-out ones" in sentences(comparison)
    assert "nothing of models from other seeds" in sentences(comparison)


METRIC = "eval_implicit_rewards/accuracies"
PROMPTS = [f"p{place}" for place in range(12)]
BROKEN = json.dumps({"prompts": ["a"], "metrics": {METRIC: {"values": [1.0], "prompts": [1]}}})


def scored(
    folder: Path, beta: float, right: list[list[int]], seeds: list[int], prompts: list[str] | None = None
) -> list[RunDirectory]:
    """A run for each seed, with the scores of its rows as a run writes them."""
    runs = []
    for seed, values in zip(seeds, right, strict=True):
        scores = Scores(list(map(float, values)), share=True, prompts=prompts or PROMPTS)
        metrics = {METRIC: {"before": None, "after": scores.estimate()}}
        run = make_run(folder / f"{beta}-{seed}", spec(beta=beta, seed=seed), metrics=metrics)
        run.write_row_scores(evaluation_prompts.row_scores({METRIC: scores}))
        runs.append(run)
    return runs


def flipped(seed: int, right: int) -> list[int]:
    """The first `right` prompts are answered, but for one, another for each seed."""
    return [int(place < right and place != seed) for place in range(len(PROMPTS))]


@pytest.mark.parametrize("their_seeds", [[1, 2, 3], [7, 8, 9]], ids=["paired", "not paired"])
def test_prompts_are_a_sample_as_well_as_seeds(tmp_path: Path, their_seeds: list[int]) -> None:
    """Every seed answers 8 or 5 of 12 prompts, but for one of them: seeds agree within a row, which is no
    proof for prompts like these. Without the rows' scores the same numbers are judged over seeds."""
    better = [flipped(seed, 8) for seed in (20, 2, 3)]
    worse = [flipped(seed, 5) for seed in (20, 21, 1)]
    runs = scored(tmp_path, 0.2, better, [1, 2, 3]) + scored(tmp_path, 0.1, worse, their_seeds)
    comparison = compare_runs(tmp_path)
    (verdict,) = comparison.verdicts[METRIC].values()
    assert verdict.difference and verdict.difference.prompts == 12 and verdict.difference.n == 3
    assert verdict.outcome == "noise" and "prompts like the 12 held-out ones" in sentences(comparison)
    for run in runs:
        run.row_scores_file.unlink()
    comparison = compare_runs(tmp_path)
    (narrow,) = comparison.verdicts[METRIC].values()
    assert narrow.difference and narrow.difference.prompts is None and narrow.row_difference is None
    assert narrow.difference.value == pytest.approx(verdict.difference.value)
    assert narrow.outcome == "lower" and narrow.p < verdict.p
    assert "on these very held-out prompts" in sentences(comparison)


def test_a_claim_about_more_is_never_easier(tmp_path: Path) -> None:
    """Over seeds and prompts: no narrower than over seeds alone, and than over prompts alone."""
    chance = random.Random(0)
    for trial in range(20):
        right = [[[chance.randint(0, 1) for _ in PROMPTS] for _ in range(2)] for _ in range(2)]
        samples = []
        for seeds in right:
            influences = [influence(np.array(row, float), np.ones(len(PROMPTS))) for row in seeds]
            samples.append(crossed.seed_sample(influences, tuple(PROMPTS)))
        both = crossed.paired_difference(*samples)
        for part in (
            stats.paired_difference(samples[0].means, samples[1].means),
            crossed.difference_over_prompts(*samples),
        ):
            assert both.value == pytest.approx(part.value), trial
            assert both.p is None or part.p is None or both.p >= part.p - 1e-12
            if both.ci95 and part.ci95:
                assert both.ci95[0] <= part.ci95[0] + 1e-9 and part.ci95[1] <= both.ci95[1] + 1e-9


@pytest.mark.parametrize("file", ["{", "[]", BROKEN, "other rows", "other prompts"])
def test_scores_that_cannot_be_used_leave_the_claim_about_seeds(tmp_path: Path, file: str) -> None:
    """A file that is broken, holds other scores than those reported, or scores of other prompts."""
    better, worse = ([flipped(seed, right) for seed in (1, 20)] for right in (8, 5))
    scored(tmp_path, 0.2, better, [1, 2])
    prompts = [f"q{place}" for place in range(12)] if file == "other prompts" else PROMPTS
    run, _ = scored(tmp_path, 0.1, worse, [1, 2], prompts)
    if file == "other rows":
        scores = Scores([1.0] * 12, share=True, prompts=PROMPTS)
        run.write_row_scores(evaluation_prompts.row_scores({METRIC: scores}))
    elif not file.startswith("other"):
        run.row_scores_file.write_text(file)
    (verdict,) = compare_runs(tmp_path).verdicts[METRIC].values()
    assert verdict.difference and verdict.difference.prompts is None and verdict.row_difference is None


def test_scores_that_are_not_those_of_the_run_are_not_used(tmp_path: Path) -> None:
    """Samples that average to another value than the run reported are not its scores."""
    answered(tmp_path, 0.1, [True, True, False], claimed=0.9)
    answered(tmp_path, 0.01, [True, False, False])
    assert [verdict.row_difference for verdict in compare_runs(tmp_path).verdicts[CORRECT].values()] == [None]


def test_the_scores_of_rows_are_what_the_run_measured() -> None:
    """The words, sentences and marks that `score_answers` counts, where a careless count goes wrong."""
    from alignment_lab.evaluation.answers import score_answers

    texts = ["", "One. Two!", "It is 3.5 m", "  a\nb ", "Why?  Because.", "Mr. X"]
    scores = score_answers(texts, [{} for _ in texts])
    for name in ("answers/words", "answers/one_sentence"):
        assert [float(row_scores.ROW_SCORES[name]({"after": answer})) for answer in texts] == scores[
            name
        ].values


# What is left out, and what makes cells another configuration


def test_free_settings_are_no_difference(tmp_path: Path) -> None:
    """What makes no other experiment makes no other configuration and no warning, inside groups as well."""
    free = {
        "training": {"logging_steps": 5, "save_steps": 10, "micro_tokens": 64},
        "eval": {"objective": "eval_loss", "direction": "minimize"},
        "parallel": {"name": "ddp", "processes": 2},
        "tracking": {"wandb": True},
    }
    plain = spec() | {"eval": {"objective": None, "direction": None}}
    other = {**plain, **{group: plain.get(group, {}) | values for group, values in free.items()}}
    make_run(tmp_path / "a", plain)
    make_run(tmp_path / "b", other | {"training": other["training"] | {"seed": 2}})
    comparison = compare_runs(tmp_path)
    assert varied_keys([plain, other]) == [] and comparison.warnings == []
    assert [(each.label, each.seeds) for each in comparison.configurations] == [("every seed", [2, 42])]


@pytest.mark.parametrize("key", ["training.logging_steps", "eval.objective"])
def test_a_free_setting_alone_is_no_other_evaluation(tmp_path: Path, key: str) -> None:
    group, name = key.split(".")
    for value in (1, 2):
        plain = spec(seed=value)
        make_run(tmp_path / str(value), plain | {group: plain.get(group, {}) | {name: value}})
    assert compare_runs(tmp_path).warnings == [] and len(compare_runs(tmp_path).configurations) == 1


def test_what_did_not_finish_is_in_no_mean_and_named_with_its_reason(tmp_path: Path) -> None:
    seeded(tmp_path, {0.1: [0.5, 0.6]})
    make_run(tmp_path / "failed", spec(beta=0.1, seed=3), state="failed")
    make_run(tmp_path / "running", spec(beta=0.1, seed=4), state="running")
    make_run(tmp_path / "stopped", spec(beta=0.1, seed=5), state="running").fail(
        "interrupted by SIGTERM", resumable=True
    )
    comparison = compare_runs(tmp_path)
    assert comparison.configurations[0].seeds == [1, 2] and len(comparison.configurations[0].records) == 5
    reasons = {record.status: reason for record, reason in words.left_out(comparison.records)}
    assert reasons == {
        "failed": comparison.records[2].error,
        "running": "has not ended",
        "interrupted": "interrupted by SIGTERM",
    }
    for shown in (
        rendered(lambda console: terminal.show(render_comparison(comparison), console)),
        files.to_markdown(comparison, "x"),
    ):
        assert "OutOfMemoryError" in shown and "interrupted by SIGTERM" in shown and "has not ended" in shown


def test_other_rows_under_the_same_settings_are_another_configuration(tmp_path: Path) -> None:
    for seed, content in ((1, "aaaaaaaaaa"), (2, "bbbbbbbbbb")):
        make_run(tmp_path / str(seed), spec(seed=seed), content=content)
    comparison = compare_runs(tmp_path)
    assert [each.label for each in comparison.configurations] == ["rows=aaaaaaaa", "rows=bbbbbbbb"]


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    seeded(tmp_path / "first", {0.1: [0.5, 0.6]})
    seeded(tmp_path / "again", {0.1: [0.7]})
    state = tmp_path / "again" / "b0.1s1" / "run.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"ended": "2999-01-01T00:00:00+00:00"}))
    (configuration,) = compare_runs(tmp_path).configurations
    assert configuration.values(CORRECT) == {1: 0.7, 2: 0.6} and configuration.repeats == 1


@pytest.mark.parametrize("change", ["prompts", "eval"])
def test_other_held_out_rows_are_said_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    make_run(tmp_path / "a", spec() | {"eval": {"generations": 8}})
    run = make_run(tmp_path / "b", spec(seed=2) | {"eval": {"generations": 8 if change == "prompts" else 4}})
    if change == "prompts":
        run.write_samples(answers([True]))
    assert main([str(tmp_path)]) == 0, "a warning is no error"
    out = capsys.readouterr().out
    assert out.lstrip().startswith("Warning: The runs"), "first of all"
    assert ("different held-out prompts" if change == "prompts" else "eval.generations: 4, 8") in " ".join(
        out.split()
    )


# The two parts of the package


@pytest.mark.parametrize("file", sorted(STUDY.glob("*.py")), ids=lambda file: file.name)
def test_what_a_study_is_knows_nothing_of_how_it_is_drawn(file: Path) -> None:
    assert not any(name.startswith("alignment_lab.report.render") for name in imported(file))


# Drift


def test_drift_and_margin_in_nats(tmp_path: Path) -> None:
    """Chosen by 2 nats, rejected by -10: drift (2 - 10) / 2 = -4, margin 2 + 10 = 12.

    On the way, (1 - 4) / 2 and 1 + 4.
    """

    def moved(before: float, after: float) -> dict[str, Any]:
        return {"before": estimate(before), "after": estimate(after)}

    run = make_run(tmp_path / "a", metrics={drift.CHOSEN: moved(0, 2), drift.REJECTED: moved(0, -10)})
    run.log_metrics({"step": 5, drift.CHOSEN: 1, drift.REJECTED: -4})
    (cell,) = load_records(find_runs(tmp_path))
    assert drift.drift_path(cell) == [(0.0, 0.0), (-1.5, 5.0), (-4.0, 12.0)]
    assert drift.drift_path(load_records([make_run(tmp_path / "b")])[0]) == []


def test_the_machine_is_named_as_far_as_it_was_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", spec() | {"parallel": {"device": "cpu"}})
    hardware = {"processor": "EPYC", "cores": 2}
    run.provenance_file.write_text(json.dumps({"hardware": hardware}))
    assert describe_hardware(load_records([run])[0]) == "EPYC, 2 cores"
    run.provenance_file.write_text(json.dumps({"hardware": hardware | {"accelerators": ["NVIDIA H100"]}}))
    assert describe_hardware(load_records([run])[0]) == "NVIDIA H100"
    run.provenance_file.write_text(json.dumps({"hardware": hardware | {"accelerators": ["NVIDIA H100"] * 8}}))
    assert describe_hardware(load_records([run])[0]) == "8 x NVIDIA H100"


# Files


def test_every_file_says_the_same(tmp_path: Path) -> None:
    seeded(tmp_path, {0.1: [0.5, 0.6, 0.7], 0.01: [0.4, 0.49, 0.58]})
    assert main([str(tmp_path)]) == 0
    written = json.loads((tmp_path / "report.json").read_text())
    row = next(each for each in written["configurations"] if each["configuration"] == "beta=0.01")
    assert row["differences"][CORRECT]["verdict"] == "lower" and row["metrics"][CORRECT]["seeds"] == 3
    assert (
        "| beta=0.01 | 1, 2, 3 |" in (tmp_path / "report.md").read_text()
        and "lower p=0.003" in (tmp_path / "report.md").read_text()
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert len(rows) == 6 and {
        float(row[f"{CORRECT} after"]) for row in rows if row["method.beta"] == "0.1"
    } == {0.5, 0.6, 0.7}


def test_a_cell_of_the_table_is_no_formula_and_no_markdown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", spec(data="=HYPERLINK(1)|<b>"))
    make_run(tmp_path / "b")
    comparison = compare_runs(tmp_path)
    assert "'=HYPERLINK(1)|<b>" in files.to_csv(comparison)
    assert r"=HYPERLINK(1)\|&lt;b>" in files.to_markdown(comparison, "x")


def test_several_paths_are_one_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(tmp_path / "one", {0.1: [0.5]})
    seeded(tmp_path / "two", {0.01: [0.5]})
    monkeypatch.chdir(tmp_path)
    assert main(["one", "two/b0.01s1", "one/b0.1s1"]) == 0
    assert "comparison/report.html" in capsys.readouterr().out
    assert len(json.loads(Path("comparison/report.json").read_text())["cells"]) == 2, (
        "a run that two paths hold counts once"
    )
    assert main(["one", "two", "--out", "one/b0.1s1"]) == 2, "a run's own report is never overwritten"


def test_a_page_stays_small_however_much_was_logged(tmp_path: Path) -> None:
    """Ten runs of 5000 steps and long answers: lines are thinned, and answers clipped, to a budget."""
    for seed in range(10):
        run = make_run(tmp_path / str(seed), spec(seed=seed))
        run.metrics_file.write_text(
            "".join(json.dumps({"step": s, "loss": 1 / (s + 1), "kl": 0.1}) + "\n" for s in range(5000))
        )
        run.write_samples([{"prompt": f"q{p}", "before": "b" * 9000, "after": "a" * 9000} for p in range(60)])
    comparison = compare_runs(tmp_path)
    assert len(page_data(comparison, [None] * 10)["prompts"]) == page_samples.MAX_PROMPTS
    assert write_comparison_page(tmp_path, comparison).stat().st_size < 4_000_000


def test_a_hundred_runs_take_less_than_three_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the processor, so that other work on this machine does not count. Measured: 1.2 s, of 200 logged
    steps and the scores of 64 rows in 8 metrics each."""
    chance = np.random.default_rng(0)
    prompts = [f"p{place}" for place in range(64)]
    for place in range(100):
        scores = {f"mine/{name}": Scores(chance.random(64).tolist(), prompts=prompts) for name in range(8)}
        metrics = {name: {"before": None, "after": each.estimate()} for name, each in scores.items()}
        run = make_run(tmp_path / str(place), spec(beta=0.1 + place // 5, seed=place % 5), metrics=metrics)
        run.write_row_scores(evaluation_prompts.row_scores(scores))
        run.metrics_file.write_text(
            "".join(
                json.dumps({"step": s, "loss": 0.5, "grad_norm": 1.0, "kl": 0.1}) + "\n" for s in range(200)
            )
        )
    start = time.process_time()
    assert main([str(tmp_path)]) == 0
    assert time.process_time() - start < 3
    assert len(json.loads((tmp_path / "report.json").read_text())["configurations"]) == 20
