"""A saved model says what the trained one said, in a process that knows nothing of the run; whatever is wrong with it is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_saves import ADAPTERS, adapter, digests, here, quantized, tiny
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment_lab.checkpoints import verify
from alignment_lab.config import Quantization
from alignment_lab.models import packed_attention
from alignment_lab.models.embedded import embedded_weights
from alignment_lab.runtime.errors import UserError

ROUNDING = 1e-4  # nats; the same float32 sums, by another number of threads perhaps
__all__ = ["here"]  # a fixture
WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A full model's folder, and what it says."""
    folder = tiny(tmp_path_factory.mktemp("whole") / "model")
    return folder, verify.probe_outputs(AutoModelForCausalLM.from_pretrained(folder))


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy to be damaged: `damaged(change)` gives its tensors to `change`, saves what comes back, and returns the folder."""

    def make(change):
        folder = shutil.copytree(whole[0], tmp_path / "damaged")
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})
        return folder

    return make


def sentence(folder: Path, said: torch.Tensor, how: verify.LoadOptions | None = None) -> str:
    with pytest.raises(UserError) as caught:
        verify.verify_saved(folder, said, how, tolerance=ROUNDING)
    found = str(caught.value)
    assert found.startswith(str(folder)) and "\n" not in found
    return found.removeprefix(f"{folder}: ")


def test_what_was_saved_says_what_was_trained(whole, capfd):
    folder, said = whole
    before = digests(folder)
    assert verify.verify_saved(folder, said, tolerance=ROUNDING) <= ROUNDING
    assert digests(folder) == before
    assert capfd.readouterr() == ("", "")


def test_the_probe_leaves_a_model_as_it_was_and_is_the_same_under_packed_attention(whole):
    folder, said = whole
    packed_attention.register()
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=packed_attention.SHARED_PREFIX
    ).train()
    assert torch.equal(verify.probe_outputs(model), said)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert said.shape == (16, 1000) and said.dtype is torch.float32


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps one state a process: whoever came before chose its precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_the_probe_is_float32_where_accelerate_casts_the_forward(whole, fresh_accelerate):
    """accelerate puts an autocast around the forward of what it prepares, and leaves it there."""
    from accelerate import Accelerator

    folder, said = whole
    model = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(
        AutoModelForCausalLM.from_pretrained(folder)
    )
    ids = torch.arange(16)[None]
    casting = model(input_ids=ids).logits
    assert torch.equal(verify.probe_outputs(model), said)
    assert torch.equal(model(input_ids=ids).logits, casting)
    with torch.no_grad():
        assert not torch.equal(casting, AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits)


def test_the_processes_of_a_run_are_not_the_fresh_ones(whole, monkeypatch):
    """A process that waited for seven others would never answer."""
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
    assert verify.verify_saved(*whole, tolerance=ROUNDING) <= ROUNDING


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_loaded_on_the_base_it_names(kind, whole, tmp_path):
    model = adapter(whole[0], tmp_path / kind, kind)
    said = verify.probe_outputs(model)
    assert verify.max_difference(said, whole[1]) > 1  # it was trained
    assert verify.verify_saved(tmp_path / kind, said, tolerance=ROUNDING) <= ROUNDING
    verify.check_files(
        tmp_path / kind, ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_reward_adapter_comes_with_its_head(kind, whole, tmp_path, here):
    """The base is a language model: it has no head of one output, and loading makes a random one."""
    model = adapter(whole[0], tmp_path / kind, kind, scores=True)
    said = verify.probe_outputs(model)
    assert said.shape == (8,)
    assert len(set(said.tolist())) == 8
    assert verify.verify_saved(tmp_path / kind, said, tolerance=ROUNDING) <= ROUNDING
    verify.check_files(
        tmp_path / kind, ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    )
    file = tmp_path / kind / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if "score" not in name}, file)
    assert "(no 'base_model.model.score.weight')" in sentence(tmp_path / kind, said)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_in_float32_on_a_base_in_bfloat16(kind, scores, whole, tmp_path, here):
    """peft makes the new head as a copy of the base's, in bfloat16, and would round the trained values into it."""
    how = verify.LoadOptions(dtype=torch.bfloat16)
    model = adapter(whole[0], tmp_path / kind, kind, how, scores=scores)
    assert verify.verify_saved(tmp_path / kind, verify.probe_outputs(model), how, tolerance=ROUNDING) <= ROUNDING
    again = dict(verify.load_saved(tmp_path / kind, how).named_parameters())
    assert all(
        torch.equal(again[name], weight) for name, weight in model.named_parameters() if weight.requires_grad
    )


def test_a_reward_model_of_full_weights(tmp_path, here):
    folder = tiny(tmp_path / "reward", scores=True)
    said = verify.probe_outputs(AutoModelForSequenceClassification.from_pretrained(folder))
    assert verify.verify_saved(folder, said, tolerance=ROUNDING) <= ROUNDING
    assert "gives other scores than the trained model, by up to" in sentence(folder, said + 1)


@quantized
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_an_adapter_on_quantized_weights_is_loaded_on_quantized_weights(name, compute, whole, tmp_path, here):
    how = verify.LoadOptions(quantization=Quantization[name], compute=compute)
    said = verify.probe_outputs(adapter(whole[0], tmp_path / "adapter", how=how))
    assert verify.verify_saved(tmp_path / "adapter", said, how, tolerance=ROUNDING) <= ROUNDING
    assert "gives other log-probabilities" in sentence(tmp_path / "adapter", said)  # on the original weights


@quantized
def test_training_after_an_evaluation_has_the_gradient_of_training_before_it(whole, tmp_path):
    """bitsandbytes repacks 4-bit weights for AVX512-BF16 at the first forward in evaluation mode: see `disable_bf16_rewrite`."""
    model = adapter(whole[0], tmp_path / "adapter", how=verify.LoadOptions(quantization=Quantization.nf4))

    def slopes():
        model.train().zero_grad()
        ids = torch.arange(300, 316)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        return {
            name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
        }

    before = slopes()
    verify.probe_outputs(model)
    assert all(torch.equal(slope, before[name]) for name, slope in slopes().items())


def test_an_emptied_tensor_is_named(whole, damaged):
    """What a process writes that does not gather a weight: ZeRO-3 leaves a tensor of no elements."""
    folder = damaged(lambda tensors: tensors | {WEIGHT: torch.empty(0)})
    assert sentence(folder, whole[1]) == f"has empty tensors: {WEIGHT}; save it again."


def test_a_deleted_key_is_named(whole, damaged, here):
    folder = damaged(lambda tensors: {name: tensor for name, tensor in tensors.items() if name != WEIGHT})
    assert sentence(folder, whole[1]) == f"lacks {WEIGHT}; save it again."


def test_a_key_of_another_name_is_named(whole, damaged, here):
    folder = damaged(lambda tensors: tensors | {f"module.{WEIGHT}": tensors[WEIGHT].clone()})
    assert (
        sentence(folder, whole[1]) == f"holds module.{WEIGHT}, which the model does not have; save it again."
    )


def test_many_wrong_keys_are_counted(whole, damaged, here):
    folder = damaged(
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    )
    assert " and 6 more; save it again." in sentence(folder, whole[1])


def test_a_value_that_is_no_number_is_named(whole, damaged, here):
    def change(tensors):
        tensors[WEIGHT][3, 4] = torch.nan
        return tensors

    assert (
        sentence(damaged(change), whole[1]) == f"has non-finite values in {WEIGHT}; save it again."
    )


def test_a_wrong_number_is_found(whole, damaged):
    def change(tensors):
        tensors[WEIGHT][3, 4] += 1
        return tensors

    assert "gives other log-probabilities than the trained model, by up to 0." in sentence(
        damaged(change), whole[1]
    )


def test_a_wrong_shape_is_one_sentence(whole, damaged, here):
    folder = damaged(lambda tensors: tensors | {WEIGHT: tensors[WEIGHT].T.contiguous()})
    assert "plain transformers and peft cannot load it" in sentence(folder, whole[1])


def test_a_truncated_file_is_named(whole, damaged, here):
    folder = damaged(lambda tensors: tensors)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert sentence(folder, whole[1]).startswith("model.safetensors is cut off or damaged (")


def test_a_missing_shard_is_found_by_the_index(whole, tmp_path, here):
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(whole[0]).save_pretrained(folder, max_shard_size="100KB")
    assert verify.verify_saved(folder, whole[1], tolerance=ROUNDING) <= ROUNDING
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    assert "which its index promises" in sentence(folder, whole[1])


def test_an_adapter_without_a_tensor_or_with_one_too_many_is_named(whole, tmp_path, here):
    """peft warns of the one and is silent of the other."""
    said = verify.probe_outputs(adapter(whole[0], tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, file)
    assert sentence(tmp_path / "adapter", said) == f"lacks {gone}; save it again."
    save_file(tensors | {"base_model.model.other.lora_A.weight": torch.ones(1)}, file)
    assert "holds base_model.model.other.lora_A.weight, which the adapter does not have" in sentence(
        tmp_path / "adapter", said
    )


def test_an_adapter_whose_base_is_gone_says_where_it_was(whole, tmp_path, here):
    base = shutil.copytree(whole[0], tmp_path / "base")
    said = verify.probe_outputs(adapter(base, tmp_path / "adapter"))
    moved = base.rename(tmp_path / "moved")
    assert sentence(tmp_path / "adapter", said).startswith(
        f"the weights under this adapter are not in {base}"
    )
    assert (
        verify.verify_saved(tmp_path / "adapter", said, verify.LoadOptions(base=moved), tolerance=ROUNDING) <= ROUNDING
    )


def test_an_adapter_with_another_scale_is_found(whole, tmp_path, here):
    said = verify.probe_outputs(adapter(whole[0], tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 16}))
    assert "gives other log-probabilities than the trained model" in sentence(tmp_path / "adapter", said)


def test_a_model_that_says_nan_was_not_worth_saving(whole, here):
    assert sentence(whole[0], whole[1] * torch.nan).startswith("was saved from a model whose outputs are NaN")


def test_a_process_that_dies_shows_what_it_wrote(whole, monkeypatch, tmp_path, capfd):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.stderr.write('no more memory\\n'); sys.stderr.flush(); import os; os._exit(3)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"ended before it wrote its result: no more memory$"):
        verify.verify_saved(*whole, tolerance=ROUNDING)
    assert "no more memory" in capfd.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
def test_files_equal_the_trained_state(tied, tmp_path):
    folder = tiny(tmp_path / "model", tied=tied)
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert ("lm_head.weight" in verify.tensor_shapes(folder)) is not tied
    verify.check_files(folder, state.items())
    for wrong, said in {
        "lacks model.extra, which was trained": state | {"model.extra": torch.ones(3)},
        f"holds {WEIGHT}, which was not trained": {
            name: tensor for name, tensor in state.items() if name != WEIGHT
        },
        f"holds {WEIGHT} as [128, 64], and [64, 128] was trained": state | {WEIGHT: state[WEIGHT].T},
        "lacks lm_head.other, which was trained": state | {"lm_head.other": state["lm_head.weight"] + 1},
    }.items():
        with pytest.raises(UserError) as caught:
            verify.check_files(folder, said.items())
        assert str(caught.value) == f"{folder}: {wrong}; save it again."


def test_a_folder_without_weights_is_refused(tmp_path, here):
    assert sentence(tmp_path, torch.zeros(16, 1000)) == "holds no safetensors; save it again."


@pytest.mark.slow
def test_the_embedded_model_is_whole(here):
    folder = embedded_weights()
    said = verify.probe_outputs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert verify.verify_saved(folder, said, tolerance=ROUNDING) <= ROUNDING
