"""A whole run of every method: three steps on tiny random weights. test_run.py has more for sft and dpo."""

import json
import math

import pytest
from test_run import FILES, TINY
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment_lab.actions import run_action
from alignment_lab.methods import METHODS
from alignment_lab.runtime.run_directory import RunDirectory

SHORTEST = [
    "eval.rows=2",
    "eval.generations=1",
    "eval.max_new_tokens=2",
    "model.shape.hidden=16",
    "model.shape.intermediate=16",
]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("sft", "dpo")])
def test_every_method_runs(method, composed, tmp_path):
    """Three steps leave every file, finite losses, and a model that loads by its own class."""
    rows = tmp_path / "texts.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"A text of {n} and more words."}) + "\n" for n in range(300))
    )
    texts = ["data=local", f"data.path={rows}", "data.max_length=64"] if method == "cpt" else []
    run = RunDirectory(tmp_path / "run")
    run_action(composed([*TINY, *SHORTEST, *texts, f"method={method}"]), run)
    assert [name for name in FILES if not (run.path / name).is_file()] == []
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    report = run.report()
    assert (report["method"], report["steps"]) == (method, 3)
    assert report["rows"]["train"] <= report["rows"]["available"]  # of texts too, whose rows are blocks
    # two short texts are one block; the two halves of a pair count as one row
    assert report["rows"]["eval"] == (1 if method == "cpt" else 2)
    assert all(math.isfinite(metric["after"]["value"]) for metric in report["metrics"].values())
    kind = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    _, info = kind.from_pretrained(run.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(run.samples()) == (0 if method in ("cpt", "reward") else 1)


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_sharding_preset_runs_in_one_process(preset, composed, tmp_path):
    """On a machine with one device there is nothing to shard."""
    run = RunDirectory(tmp_path / "run")
    run_action(composed([*TINY, *SHORTEST, f"parallel={preset}"]), run)
    assert run.state()["state"] == "finished"
    assert run.metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
