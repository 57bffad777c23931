"""A saved model gives the trained model's outputs in a fresh process.

Whatever is wrong with it is one sentence.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_saves import (
    ADAPTERS,
    FOREIGN_ADAPTERS,
    file_digests,
    in_this_process,
    quantized,
    tiny_model,
    trained_adapter,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment_lab.checkpoints import verify
from alignment_lab.checkpoints.weights import load_weights, save_checkpoint_weights, saved_state
from alignment_lab.config import Quantization
from alignment_lab.models import packed_attention
from alignment_lab.models.embedded import embedded_weights
from alignment_lab.runtime.errors import UserError

ROUNDING = 1e-4  # nats; the same float32 sums, perhaps by another number of threads
__all__ = ["in_this_process"]  # a fixture
WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """The folder of a full model, and its outputs."""
    folder = tiny_model(tmp_path_factory.mktemp("whole") / "model")
    return folder, verify.probe_outputs(AutoModelForCausalLM.from_pretrained(folder))


@pytest.fixture
def damaged(saved_model, tmp_path):
    """`damaged(change)` applies `change` to a copy's tensors, saves the result, and returns the folder."""

    def copy_with(change):
        folder = shutil.copytree(saved_model[0], tmp_path / "damaged")
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})
        return folder

    return copy_with


def check_adapter_files(folder: Path, model: PeftModel) -> None:
    """What was saved is what was trained, and what peft expects."""
    state = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    verify.check_files(folder, saved_state(model, state).items())
    verify.check_adapter_names(model, folder)


def error_sentence(folder: Path, outputs: torch.Tensor, options: verify.LoadOptions | None = None) -> str:
    with pytest.raises(UserError) as caught:
        verify.verify_saved(folder, outputs, options, tolerance=ROUNDING)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message
    return message.removeprefix(f"{folder}: ")


def test_a_saved_model_gives_the_outputs_of_the_trained_one(saved_model, capfd):
    folder, outputs = saved_model
    before = file_digests(folder)
    assert verify.verify_saved(folder, outputs, tolerance=ROUNDING) <= ROUNDING
    assert file_digests(folder) == before
    assert capfd.readouterr() == ("", "")


def test_the_probe_restores_the_model_and_is_equal_under_packed_attention(saved_model):
    folder, outputs = saved_model
    packed_attention.register()
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=packed_attention.SHARED_PREFIX
    ).train()
    assert torch.equal(verify.probe_outputs(model), outputs)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert outputs.shape == (16, 1000) and outputs.dtype is torch.float32


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps one state per process: an earlier test chose its precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_the_probe_is_float32_where_accelerate_casts_the_forward(saved_model, fresh_accelerate):
    """accelerate wraps the forward of a prepared model in autocast, and leaves it there."""
    from accelerate import Accelerator

    folder, outputs = saved_model
    model = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(
        AutoModelForCausalLM.from_pretrained(folder)
    )
    ids = torch.arange(16)[None]
    casting = model(input_ids=ids).logits
    assert torch.equal(verify.probe_outputs(model), outputs)
    assert torch.equal(model(input_ids=ids).logits, casting)
    with torch.no_grad():
        assert not torch.equal(casting, AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits)


def test_the_fresh_process_does_not_belong_to_the_run(saved_model, monkeypatch, tmp_path):
    """A process that waits for seven others would never finish; what lies in the working directory is not the
    standard library.
    """
    for module in ("copy", "random", "queue"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "9",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert verify.verify_saved(*saved_model, tolerance=ROUNDING) <= ROUNDING


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_loaded_on_the_base_that_it_names(kind, saved_model, tmp_path):
    model = trained_adapter(saved_model[0], tmp_path / kind, kind)
    outputs = verify.probe_outputs(model)
    assert verify.max_difference(outputs, saved_model[1]) > 1  # it was trained
    assert verify.verify_saved(tmp_path / kind, outputs, tolerance=ROUNDING) <= ROUNDING
    check_adapter_files(tmp_path / kind, model)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_reward_adapter_is_saved_with_its_head(kind, saved_model, tmp_path, in_this_process):
    """The base is a language model: it has no score head, and loading makes a random one."""
    model = trained_adapter(saved_model[0], tmp_path / kind, kind, score_head=True)
    outputs = verify.probe_outputs(model)
    assert outputs.shape == (8,)
    assert len(set(outputs.tolist())) == 8
    assert verify.verify_saved(tmp_path / kind, outputs, tolerance=ROUNDING) <= ROUNDING
    check_adapter_files(tmp_path / kind, model)
    file = tmp_path / kind / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if "score" not in name}, file)
    assert "(no 'base_model.model.score.weight')" in error_sentence(tmp_path / kind, outputs)


@pytest.mark.parametrize("kind", FOREIGN_ADAPTERS)
def test_every_part_of_an_adapter_is_saved_and_resumed(kind, tmp_path, in_this_process):
    """The final files load as peft expects them; a checkpoint gives every trained weight back by its name."""
    base = tiny_model(tmp_path / "base", tied=kind != "whole modules")
    model = trained_adapter(base, tmp_path / "adapter", kind)
    check_adapter_files(tmp_path / "adapter", model)
    outputs = verify.probe_outputs(model)
    assert verify.verify_saved(tmp_path / "adapter", outputs, tolerance=ROUNDING) <= ROUNDING
    save_checkpoint_weights(model, tmp_path / "checkpoint")
    resumed = load_weights(model, tmp_path / "checkpoint")
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(torch.equal(resumed[name], weight) for name, weight in trained.items())


@pytest.mark.parametrize("score_head", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_float32_adapter_on_a_bfloat16_base(kind, score_head, saved_model, tmp_path, in_this_process):
    """peft makes the new head as a bfloat16 copy of the base's, and would round the trained values into
    it.
    """
    options = verify.LoadOptions(dtype=torch.bfloat16)
    model = trained_adapter(saved_model[0], tmp_path / kind, kind, options, score_head=score_head)
    assert (
        verify.verify_saved(tmp_path / kind, verify.probe_outputs(model), options, tolerance=ROUNDING)
        <= ROUNDING
    )
    reloaded = dict(verify.load_saved(tmp_path / kind, options).named_parameters())
    assert all(
        torch.equal(reloaded[name], weight)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    )


def test_a_reward_model_of_full_weights(tmp_path, in_this_process):
    folder = tiny_model(tmp_path / "reward", score_head=True)
    outputs = verify.probe_outputs(AutoModelForSequenceClassification.from_pretrained(folder))
    assert verify.verify_saved(folder, outputs, tolerance=ROUNDING) <= ROUNDING
    assert "gives other scores than the trained model, by up to" in error_sentence(folder, outputs + 1)


@quantized
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_adapter_is_loaded_on_quantized_weights_if_it_was_trained_on_them(
    quantization, compute, saved_model, tmp_path, in_this_process
):
    options = verify.LoadOptions(quantization=Quantization[quantization], compute=compute)
    outputs = verify.probe_outputs(trained_adapter(saved_model[0], tmp_path / "adapter", options=options))
    assert verify.verify_saved(tmp_path / "adapter", outputs, options, tolerance=ROUNDING) <= ROUNDING
    # on the original weights
    assert "gives other log-probabilities" in error_sentence(tmp_path / "adapter", outputs)


@quantized
def test_training_after_an_evaluation_has_the_gradient_of_training_before_it(saved_model, tmp_path):
    """bitsandbytes repacks 4-bit weights for AVX512-BF16 at the first forward in evaluation mode: see
    `disable_bf16_rewrite`.
    """
    model = trained_adapter(
        saved_model[0], tmp_path / "adapter", options=verify.LoadOptions(quantization=Quantization.nf4)
    )

    def gradients():
        model.train().zero_grad()
        ids = torch.arange(300, 316)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        return {
            name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
        }

    before = gradients()
    verify.probe_outputs(model)
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients().items())


def test_an_emptied_tensor_is_named(saved_model, damaged):
    """What a process saves that does not gather a weight: ZeRO-3 leaves a tensor without elements."""
    folder = damaged(lambda tensors: tensors | {WEIGHT: torch.empty(0)})
    assert error_sentence(folder, saved_model[1]) == f"has empty tensors: {WEIGHT}; save it again."


def test_a_deleted_key_is_named(saved_model, damaged, in_this_process):
    folder = damaged(lambda tensors: {name: tensor for name, tensor in tensors.items() if name != WEIGHT})
    assert error_sentence(folder, saved_model[1]) == f"lacks {WEIGHT}; save it again."


def test_an_unexpected_key_is_named(saved_model, damaged, in_this_process):
    folder = damaged(lambda tensors: tensors | {f"module.{WEIGHT}": tensors[WEIGHT].clone()})
    assert (
        error_sentence(folder, saved_model[1])
        == f"holds module.{WEIGHT}, which the model does not have; save it again."
    )


def test_many_wrong_keys_are_counted(saved_model, damaged, in_this_process):
    folder = damaged(
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    )
    assert " and 6 more; save it again." in error_sentence(folder, saved_model[1])


def test_a_nan_is_named_by_its_tensor(saved_model, damaged, in_this_process):
    def change(tensors):
        tensors[WEIGHT][3, 4] = torch.nan
        return tensors

    assert (
        error_sentence(damaged(change), saved_model[1])
        == f"has non-finite values in {WEIGHT}; save it again."
    )


def test_a_wrong_number_is_found(saved_model, damaged):
    def change(tensors):
        tensors[WEIGHT][3, 4] += 1
        return tensors

    assert "gives other log-probabilities than the trained model, by up to 0." in error_sentence(
        damaged(change), saved_model[1]
    )


def test_a_wrong_shape_is_one_sentence(saved_model, damaged, in_this_process):
    folder = damaged(lambda tensors: tensors | {WEIGHT: tensors[WEIGHT].T.contiguous()})
    assert "plain transformers and peft cannot load it" in error_sentence(folder, saved_model[1])


def test_a_truncated_file_is_named(saved_model, damaged, in_this_process):
    folder = damaged(lambda tensors: tensors)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert error_sentence(folder, saved_model[1]).startswith("model.safetensors is cut off or damaged (")


def test_a_missing_shard_is_found_by_the_index(saved_model, tmp_path, in_this_process):
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(saved_model[0]).save_pretrained(folder, max_shard_size="100KB")
    assert verify.verify_saved(folder, saved_model[1], tolerance=ROUNDING) <= ROUNDING
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    assert "which its index promises" in error_sentence(folder, saved_model[1])


def test_an_adapter_without_a_tensor_or_with_one_too_many_is_named(saved_model, tmp_path, in_this_process):
    """peft warns of the one and ignores the other."""
    outputs = verify.probe_outputs(trained_adapter(saved_model[0], tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    removed = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != removed}, file)
    assert error_sentence(tmp_path / "adapter", outputs) == f"lacks {removed}; save it again."
    save_file(tensors | {"base_model.model.other.lora_A.weight": torch.ones(1)}, file)
    assert "holds base_model.model.other.lora_A.weight, which the adapter does not have" in error_sentence(
        tmp_path / "adapter", outputs
    )


def test_an_adapter_without_its_base_names_where_it_was(saved_model, tmp_path, in_this_process):
    base = shutil.copytree(saved_model[0], tmp_path / "base")
    outputs = verify.probe_outputs(trained_adapter(base, tmp_path / "adapter"))
    moved = base.rename(tmp_path / "moved")
    assert error_sentence(tmp_path / "adapter", outputs).startswith(
        f"the weights under this adapter are not in {base}"
    )
    assert (
        verify.verify_saved(tmp_path / "adapter", outputs, verify.LoadOptions(base=moved), tolerance=ROUNDING)
        <= ROUNDING
    )


def test_an_adapter_with_another_scale_is_found(saved_model, tmp_path, in_this_process):
    outputs = verify.probe_outputs(trained_adapter(saved_model[0], tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 16}))
    assert "gives other log-probabilities than the trained model" in error_sentence(
        tmp_path / "adapter", outputs
    )


def test_nan_outputs_of_the_trained_model_are_refused(saved_model, in_this_process):
    assert error_sentence(saved_model[0], saved_model[1] * torch.nan).startswith(
        "was saved from a model whose outputs are NaN"
    )


def test_the_stderr_of_a_process_that_dies_is_shown(saved_model, monkeypatch, tmp_path, capfd):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.stderr.write('no more memory\\n'); sys.stderr.flush(); import os; os._exit(3)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"ended before it wrote its result: no more memory$"):
        verify.verify_saved(*saved_model, tolerance=ROUNDING)
    assert "no more memory" in capfd.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
def test_files_equal_the_trained_state(tied, tmp_path):
    folder = tiny_model(tmp_path / "model", tied=tied)
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert ("lm_head.weight" in verify.tensor_shapes(folder)) is not tied
    verify.check_files(folder, state.items())
    for problem, trained_state in {
        "lacks model.extra, which was trained": state | {"model.extra": torch.ones(3)},
        f"holds {WEIGHT}, which was not trained": {
            name: tensor for name, tensor in state.items() if name != WEIGHT
        },
        f"holds {WEIGHT} as [128, 64], and [64, 128] was trained": state | {WEIGHT: state[WEIGHT].T},
        "lacks lm_head.other, which was trained": state | {"lm_head.other": state["lm_head.weight"] + 1},
    }.items():
        with pytest.raises(UserError) as caught:
            verify.check_files(folder, trained_state.items())
        assert str(caught.value) == f"{folder}: {problem}; save it again."


def test_a_folder_without_weights_is_refused(tmp_path, in_this_process):
    assert error_sentence(tmp_path, torch.zeros(16, 1000)) == "holds no safetensors; save it again."


@pytest.mark.slow
def test_the_embedded_model_is_complete(in_this_process):
    folder = embedded_weights()
    outputs = verify.probe_outputs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert verify.verify_saved(folder, outputs, tolerance=ROUNDING) <= ROUNDING
