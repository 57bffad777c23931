"""The arithmetic of the benchmarks, and one comparison with TRL from end to end on the tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is not part of the package

from benchmarks import __main__ as command
from benchmarks import check, costs, grid, results, shapes, tokens

LOGS = [{"loss": 0.7, "logps/chosen": -100.0}, {"loss": 0.6, "logps/chosen": -90.0}]


def changed(**values: float) -> list[dict[str, float]]:
    """LOGS with other values in the second step."""
    return [LOGS[0], {**LOGS[1], **values}]


def test_equal_runs_are_comparable() -> None:
    (comparison,) = check.compare_float32("dpo", LOGS, LOGS)
    assert comparison.holds and comparison.worst == 0 and comparison.values == "loss, logps/chosen of 2 steps"


@pytest.mark.parametrize(
    "other",
    [
        changed(loss=0.6 * 1.002),
        changed(loss=float("nan")),
        LOGS[:1],
        [],
        changed(**{"logps/chosen": -90.2}),
        [{"reward": 1.0}] * 2,
    ],
    ids=["loss", "nan", "a step less", "nothing", "log-probability", "other names"],
)
def test_runs_that_differ_are_not_comparable(other: list[dict[str, float]]) -> None:
    assert not all(comparison.holds for comparison in check.compare_float32("dpo", LOGS, other))


def test_a_loose_check_allows_two_hundredths_and_bfloat16_a_tenth_after_the_first_step() -> None:
    def holds(is_bfloat16: bool, other: list[dict[str, float]]) -> bool:
        return all(
            comparison.holds
            for comparison in check.compare_timed("dpo", LOGS, other, is_bfloat16=is_bfloat16)
        )

    assert holds(False, changed(loss=0.6 * 1.015)) and not holds(False, changed(loss=0.6 * 1.03))
    assert holds(True, changed(loss=0.6 * 1.03)) and not holds(True, changed(loss=0.6 * 1.2))
    assert not holds(True, [{**LOGS[0], "loss": 0.7 * 1.03}, LOGS[1]])
    assert not holds(True, changed(**{"logps/chosen": -93.0}))


def test_kto_is_compared_where_the_kl_has_no_effect() -> None:
    """Its second loss may differ with the KL; the first loss and the second step's rewards may not."""
    ours = [{"loss": 0.5, "rewards/chosen": 0.0}, {"loss": 0.49, "rewards/chosen": 0.02}]
    theirs = [{"loss": 0.5, "rewards/chosen": 0.0}, {"loss": 0.47, "rewards/chosen": 0.02}]
    assert all(comparison.holds for comparison in check.compare_float32("kto", ours, theirs))
    assert not all(
        comparison.holds for comparison in check.compare_float32("kto", ours, theirs, same_kl=True)
    )
    theirs[1]["rewards/chosen"] = 0.03
    assert not all(comparison.holds for comparison in check.compare_float32("kto", ours, theirs))


def test_a_ratio_is_the_median_of_pairs() -> None:
    """TRL takes 2, 9 and 4 times the lab's seconds of each round: the median is 4. Memory is lab over TRL."""
    ours = [{"seconds": s, "cpu_seconds": 1.0, "peak_gb": 1.0} for s in (1.0, 10.0, 2.0)]
    theirs = [{"seconds": s, "cpu_seconds": 3.0, "peak_gb": 2.0} for s in (2.0, 90.0, 8.0)]
    ratios = costs.paired_ratios(ours, theirs)
    assert (ratios["seconds"]["median"], ratios["seconds"]["low"], ratios["seconds"]["high"]) == (
        4.0,
        2.0,
        9.0,
    )
    assert (ratios["cpu_seconds"]["median"], ratios["memory"]["median"]) == (3.0, 0.5)


def test_pieces_are_chosen_by_name_or_method() -> None:
    assert command.select_pieces("kto,tokens") == ["kto/hh", "kto/kto_en", "tokens"]
    assert command.select_pieces("dpo/hh") == ["dpo/hh"]
    assert len(command.select_pieces("")) == len(command.CASES) + len(command.OTHER_PIECES)
    with pytest.raises(SystemExit, match="no such piece"):
        command.select_pieces("dpo/nope")


def test_rows_of_the_grid_have_exact_lengths() -> None:
    rows = grid.make_pairs(list(range(10)), prompt=5, answer=3, count=4)
    assert [tuple(map(len, row.values())) for row in rows] == [(5, 3, 3)] * 4
    assert rows[0] == {"prompt_ids": [0, 1, 2, 3, 4], "chosen_ids": [5, 6, 7], "rejected_ids": [8, 9, 0]}


def test_arithmetic_of_a_step() -> None:
    """One layer: body 4 * 8 * (2*1+2*1) + 3 * 8 * 16 = 512 with one head of 4, head 8 * 10 = 80. A prompt of
    2, answers of 1 and 3.

    Shared, 6 tokens: 6 * (512 * 6 + 80 * 4), and attention 12 * 4 per pair of a token and one that it sees: 3
    + (2+1) + (6+6) = 18. Not shared the prompt counts twice: 8 tokens, 21 such pairs. LoRA has 4 in the place
    of 6.
    """
    shape = shapes.Shape(
        layers=1, hidden=8, intermediate=16, heads=1, kv_heads=1, head_dim=4, vocabulary=10, tied=True
    )
    assert (shape.body, shape.head) == (512, 80)
    assert shapes.step_flops(shape, [(2, 1, 3)], shared=True, lora=False) == 6 * (512 * 6 + 80 * 4) + 48 * 18
    assert shapes.step_flops(shape, [(2, 1, 3)], shared=False, lora=True) == 4 * (512 * 8 + 80 * 4) + 48 * 21


def test_tokens_agree_as_far_as_the_labs_go() -> None:
    ours = [{"prompt_ids": [1, 2], "chosen_ids": [3]}, {"prompt_ids": [1], "chosen_ids": [4]}]
    theirs = [{"prompt_ids": [1, 2], "chosen_ids": [3, 9]}, {"prompt_ids": [1], "chosen_ids": [5, 9]}]
    assert tokens.share_of_equal_rows(ours, theirs) == 0.5


def test_pieces_of_several_calls_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "measure_gemm", lambda: {"float32": 1.0, "bfloat16": 2.0})
    path = tmp_path / "results.json"
    for name, figures in (("a", 1), ("b", 2), ("a", 3)):
        results.Results(path).add(name, {"comparable": True, "value": figures})
    pieces = json.loads(path.read_text())["pieces"]
    assert {name: piece["figures"]["value"] for name, piece in pieces.items()} == {"a": 3, "b": 2}
    content = json.loads(path.read_text())
    content["machine"]["processor"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="another processor"):
        results.Results(path)


def test_a_piece_that_is_not_comparable_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is measured: the sweep's figures are given, once comparable and once not."""
    monkeypatch.setattr(results, "measure_gemm", lambda: {"float32": 1.0, "bfloat16": 2.0})
    monkeypatch.setattr(
        command, "parse_arguments", lambda: Namespace(out=tmp_path / "results.json", pieces=["sweep"])
    )
    side = [{"seconds": 1.0, "cpu_seconds": 1.0}]
    for comparable, code in ((True, 0), (False, 1)):
        figures: dict[str, Any] = {"cells": ["dpo"], "steps": 1, "rows_per_cell": 8, "comparable": comparable}
        figures |= {
            "sides": {"lab": side, "shipped": side},
            "ratios": {"shipped": {"seconds": costs.summarize_ratios([2.0])}},
        }
        monkeypatch.setattr(command, "measure_pieces", lambda *_, sweep=figures: [("sweep", sweep)])
        assert command.main() == code
        assert ("NOT COMPARABLE" in capsys.readouterr().out) is not comparable


def test_dpo_beside_trl_from_end_to_end(tmp_path: Path) -> None:
    """Eight pairs of the embedded data: both sides run, agree, and write figures and a plot."""
    out = tmp_path / "results.json"
    options = [
        "--only",
        "dpo/hh",
        "--model",
        "tiny",
        "--quick",
        "--embedded",
        "--against",
        "tuned",
        "--out",
        str(out),
    ]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    figures = json.loads(out.read_text())["pieces"]["dpo/hh"]["figures"]
    assert figures["comparable"] and figures["rows"] == 8 and figures["data"] == "embedded"
    assert all(
        comparison["compared"] == "loss, logps/chosen, logps/rejected of 1 steps"
        for comparison in figures["check"]["float32"]
    )
    assert figures["ratios"]["tuned"]["seconds"]["median"] > 0 and figures["sides"]["lab"]["peak_gb"][0] > 0
    assert out.with_suffix(".png").stat().st_size > 1000


def test_a_lora_job_is_planned_as_one():
    """Otherwise passes are sized for full training, whose states take most of the memory."""
    from benchmarks.cases import Job
    from benchmarks.lab import compose_experiment

    parallel = compose_experiment(Job("lab.train", model="shape-8b", lora=16)).parallel
    assert (parallel.adapter.name, parallel.rank) == ("lora", 16)


def test_a_job_keeps_the_callers_python_path(tmp_path, monkeypatch):
    """On a machine without the packages they may lie in a folder that PYTHONPATH names."""
    from benchmarks.process import ROOT, environment

    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert environment(tmp_path)["PYTHONPATH"] == f"{ROOT}:/somewhere"


def test_generated_rows_go_from_the_file_to_the_packs_of_an_epoch(tmp_path):
    from benchmarks.cases import Job
    from benchmarks.lab_scale import prepare
    from benchmarks.scale import generate_rows

    file = tmp_path / "rows.jsonl"
    generate_rows(file, 60)
    found = prepare(Job("lab.scale", model="tiny", data=["data=local", f"data.path={file}"]))
    assert found["rows"]["train"] == 8 and found["dropped"] == {}  # a step of them
    assert found["tokens"] > 8 * 30 and found["passes"] == 1
    assert found["seconds"].keys() == {"validate", "tokenize", "pack"}


@pytest.mark.slow
def test_the_check_of_an_offline_machine_runs_where_there_is_no_accelerator(tmp_path: Path) -> None:
    """What it measures is skipped there; all else, fused kernels that need no Triton included, is done."""
    own = {"PYTHON": sys.executable, "SITE": str(tmp_path / "site")}
    own |= {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")}
    stages = ["facts", "passes"]
    checked = subprocess.run(
        ["bash", "benchmarks/offline/check.sh", *stages],
        cwd=ROOT,
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    passes = [json.loads(line) for line in (tmp_path / "out" / "passes.jsonl").read_text().splitlines()]
    assert {(line["train"], line["kernels"]) for line in passes} == {
        ("full", False),
        ("lora", False),
        ("lora", True),
    }
    assert all("failed" not in line for line in passes)
