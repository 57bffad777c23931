"""Runs with an adapter: what is trained, what the reference is, what is saved."""

import io
import math
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run import TINY

from alignment_lab.actions import run_action
from alignment_lab.runtime.files import read_json
from alignment_lab.runtime.run_directory import RunDirectory


def run_with_adapter(composed, folder: Path, *overrides: str) -> tuple[RunDirectory, str]:
    """A short run with an adapter, and what it printed."""
    run, stdout = RunDirectory(folder), io.StringIO()
    with redirect_stdout(stdout):
        run_action(
            composed([*TINY, "parallel=lora", "parallel.processes=1", "eval.generations=0", *overrides]), run
        )
    return run, " ".join(stdout.getvalue().split())


def test_a_trained_adapter_is_resumed_and_is_its_own_reference(composed, tmp_path):
    """SFT trains one, DPO starts from it: its first loss is log 2, which it would not be against the bare
    base.
    """
    sft, output = run_with_adapter(composed, tmp_path / "sft", "method=sft")
    assert "rank 16, alpha 32" in output and "the reference is the base" in output
    dpo, output = run_with_adapter(
        composed, tmp_path / "dpo", "method=dpo", f"model.init_adapter={sft.model}"
    )
    assert f"it goes on from {sft.model}, and is the reference as it lies there" in output
    assert dpo.metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (
        read_json(dpo.provenance_file)["content"]["model"]
        != read_json(sft.provenance_file)["content"]["model"]
    )
    before, after = (load_file(run.model / "adapter_model.safetensors") for run in (sft, dpo))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "overrides",
    [
        "parallel.adapter=dora",
        "parallel.adapter=rslora",
        "parallel.quantization=nf4",
        "parallel.quantization=int8",
    ],
)
def test_every_kind_of_adapter_and_base_trains_and_is_saved(overrides, composed, tmp_path):
    run, output = run_with_adapter(composed, tmp_path / "run", overrides)
    assert "saved model: loaded again by a fresh process" in output
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert losses[-1] < losses[0]
