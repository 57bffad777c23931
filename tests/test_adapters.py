"""Runs with an adapter: what is trained, what the reference is, what is saved."""

import io
import math
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_saves import in_this_process
from test_run import TINY
from transformers import AutoModelForCausalLM

from alignment_lab.actions import run_action
from alignment_lab.config import ModelSource
from alignment_lab.content import check_adapter_base, read_files
from alignment_lab.models.loading import load_policy
from alignment_lab.models.locate import base_name, locate_model
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import read_json, write_json
from alignment_lab.runtime.run_directory import RunDirectory

__all__ = ["in_this_process"]  # a fixture


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
    base, and not with the dropout that others train adapters with.
    """
    sft, output = run_with_adapter(composed, tmp_path / "sft", "method=sft")
    assert "rank 16, alpha 32" in output and "the reference is the base" in output
    write_json(config := sft.model / "adapter_config.json", read_json(config) | {"lora_dropout": 0.2})
    dpo, output = run_with_adapter(
        composed, tmp_path / "dpo", "method=dpo", f"model.init_adapter={sft.model}"
    )
    assert f"it goes on from {sft.model}, and is the reference as it lies there" in output
    assert "its lora_dropout of 0.2 is off" in output
    assert dpo.metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (
        read_json(dpo.provenance_file)["content"]["model"]
        != read_json(sft.provenance_file)["content"]["model"]
    )
    before, after = (load_file(run.model / "adapter_model.safetensors") for run in (sft, dpo))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_names_the_base_that_it_is_trained_on_and_does_not_go_on_over_another(composed, tmp_path):
    """A copy is the same base, and named anew; other weights are refused where their digests are known, by
    the adapter's run or by the folder that it names, and said where they are not.
    """
    whole = composed([*TINY, "model=tiny"])
    same, other, adapter = tmp_path / "same", tmp_path / "other", tmp_path / "run" / "model"
    for folder in (same, other):
        shutil.copytree(locate_model(whole.model), folder)
    model = AutoModelForCausalLM.from_pretrained(same)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    wrapped.save_pretrained(adapter)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, other / "model.safetensors", {"format": "pt"})

    def spec(folder: Path, adapter: Path = adapter):
        return composed(
            [*TINY, "model=hub", f"model.path={folder}", f"model.init_adapter={adapter}", "parallel=lora"]
        )

    assert check_adapter_base(spec(same), same) is None
    moved = same.rename(tmp_path / "moved")
    sentence = check_adapter_base(spec(moved), moved)
    assert sentence and f"names {same} as its base, and this run trains it over {moved}" in sentence
    recorded = {"files": read_files(spec(moved), moved)}
    write_json(tmp_path / "run" / "provenance.json", recorded)
    assert check_adapter_base(spec(moved), moved) is None
    with pytest.raises(UserError, match="give those with"):
        check_adapter_base(spec(other), other)
    elsewhere = shutil.copytree(adapter, tmp_path / "copy")
    moved.rename(same)
    with pytest.raises(UserError, match="was trained on the weights of"):
        check_adapter_base(spec(other, elsewhere), other)
    policy = load_policy(spec(same), same, torch.device("cpu"), torch.float32)
    policy.save_pretrained(tmp_path / "saved")
    named = read_json(tmp_path / "saved" / "adapter_config.json")
    assert (named["base_model_name_or_path"], named["revision"]) == (str(same), None)
    commit = tmp_path / "snapshots" / "abc"
    assert base_name(replace(whole.model, source=ModelSource.hub, path="org/name"), commit) == (
        "org/name",
        "abc",
    )


@pytest.mark.parametrize(
    "overrides",
    [
        "parallel.adapter=dora",
        "parallel.adapter=rslora",
        "parallel.quantization=nf4",
        "parallel.quantization=int8",
    ],
)
def test_every_kind_of_adapter_and_base_trains_and_is_saved(overrides, composed, tmp_path, in_this_process):
    """As plain transformers and peft load it; that another process can, test_verify.py shows of each kind."""
    run, output = run_with_adapter(composed, tmp_path / "run", overrides)
    assert "saved model: loaded again by a fresh process" in output
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert losses[-1] < losses[0]
