"""Runs with an adapter: what is trained, what it is measured against, what is saved."""

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


def adapted(composed, folder: Path, *overrides: str) -> tuple[RunDirectory, str]:
    """A short run with an adapter, and what it printed."""
    run, said = RunDirectory(folder), io.StringIO()
    with redirect_stdout(said):
        run_action(
            composed([*TINY, "parallel=lora", "parallel.processes=1", "eval.generations=0", *overrides]), run
        )
    return run, " ".join(said.getvalue().split())


def test_an_adapter_goes_on_and_is_its_own_reference(composed, tmp_path):
    """SFT trains one, DPO goes on from it: its first loss is log 2, which it would not be against the bare base."""
    sft, said = adapted(composed, tmp_path / "sft", "method=sft")
    assert "rank 16, alpha 32" in said and "the reference is the base" in said
    dpo, said = adapted(composed, tmp_path / "dpo", "method=dpo", f"model.init_adapter={sft.model}")
    assert f"it goes on from {sft.model}, and is the reference as it lies there" in said
    assert dpo.metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (
        read_json(dpo.provenance_file)["content"]["model"]
        != read_json(sft.provenance_file)["content"]["model"]
    )
    before, after = (load_file(run.model / "adapter_model.safetensors") for run in (sft, dpo))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "dials",
    [
        "parallel.adapter=dora",
        "parallel.adapter=rslora",
        "parallel.quantization=nf4",
        "parallel.quantization=int8",
    ],
)
def test_every_adapter_and_base_trains_and_is_saved_whole(dials, composed, tmp_path):
    run, said = adapted(composed, tmp_path / "run", dials)
    assert "saved model: loaded again by a fresh process" in said
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert losses[-1] < losses[0]
