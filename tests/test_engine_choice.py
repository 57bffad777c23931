"""The layout for a model: packed where exact, else padded with the reason, and equal numbers either way."""

import json
from types import SimpleNamespace

import pytest
import torch
from small_models import LONGEST, SEQUENCES, assert_outputs_equal, engine_outputs, plain_outputs, small_model
from transformers import AutoModelForCausalLM

from alignment_lab.config import Model, ModelSource
from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.layout import Engine
from alignment_lab.models import packed_attention
from alignment_lab.models.loading import load_model
from alignment_lab.models.packed_attention import unsupported_reason
from alignment_lab.runtime.errors import UserError

PACKED, PADDED = Engine(True, 1000), Engine(False, 1000)
MODELS = {  # family, settings, why rows of 22 tokens are padded
    "a window that cuts": (
        "mistral",
        {"sliding_window": 8},
        "its window is 8 tokens and sequences have up to 22",
    ),
    "a window of a token less": (
        "mistral",
        {"sliding_window": LONGEST - 1},
        "its window is 21 tokens and sequences have up to 22",
    ),
    "a window of a row": ("mistral", {"sliding_window": LONGEST}, None),
    "a window in some layers": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 8},
        "its window is 8 tokens",
    ),
    "a wide window in some layers": ("gemma3_text", {"head_dim": 8, "sliding_window": 64}, None),
    "a window that is switched off": ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, None),
    "chunks": (
        "llama4_text",
        {
            "num_local_experts": 2,
            "head_dim": 8,
            "intermediate_size_mlp": 32,
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 1],
        },
        "its layers are chunked_attention",
    ),
    "no attention": ("mamba", {"state_size": 4}, "its layers are linear_attention"),
    "convolutions between": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "its layers are conv"),
    "a model that drops layouts": ("stablelm", {}, "packed log-probabilities differ by"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_packed_or_padded_with_a_reason_and_exact_either_way(name):
    family, settings, expected_reason = MODELS[name]
    model = small_model(family, **settings)
    engine, reason = choose_engine(model, LONGEST, 1000)
    assert (
        (engine, reason) == (PACKED, None)
        if expected_reason is None
        else (engine == PADDED and expected_reason in reason)
    )
    assert_outputs_equal(engine_outputs(model, SEQUENCES, engine), plain_outputs(model, SEQUENCES), 1e-12)


UNUSUAL = {  # more than softmax(QK)V, or an attention of its own
    "softcapping": (
        "gemma2",
        {
            "head_dim": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "sinks": (
        "gpt_oss",
        {"num_local_experts": 4, "head_dim": 8, "num_experts_per_tok": 2, "sliding_window": 64},
    ),
    "biases by distance": (
        "bloom",
        {"n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "attention of its own": ("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "attention by a table of its own": ("falcon", {"alibi": False, "new_decoder_architecture": False}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_model_is_exact_as_the_lab_loads_it(name, tmp_path):
    """Against the same weights with eager attention, in float32.

    A model that the lab cannot serve would have to be a sentence instead.
    """
    family, settings = UNUSUAL[name]
    small_model(family, implementation="eager", dtype=torch.float32, **settings).save_pretrained(tmp_path)
    true = plain_outputs(
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval(), SEQUENCES
    )
    loaded = load_model(Model(source=ModelSource.hub, path=str(tmp_path)), tmp_path)
    engine, _ = choose_engine(loaded, LONGEST, 1000)
    assert_outputs_equal(engine_outputs(loaded, SEQUENCES, engine), true, 1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"attention_dropout": 0.5}], ids=["as it is", "dropout in attention"]
)
def test_a_loaded_model_is_the_same_function_in_training(settings, tmp_path):
    """Policy and reference are one function at the start: no dropout, wherever a family keeps its rate."""
    small_model("llama", dtype=torch.float32, **settings).save_pretrained(tmp_path)
    loaded = load_model(Model(source=ModelSource.hub, path=str(tmp_path)), tmp_path)
    for engine in (PACKED, PADDED):
        assert_outputs_equal(
            engine_outputs(loaded.train(), SEQUENCES, engine),
            engine_outputs(loaded.eval(), SEQUENCES, engine),
            1e-6,
        )


def test_a_model_that_ignores_layouts_is_detected(monkeypatch):
    """A model that reads its keywords one by one would drop the layout, and mix up all rows."""
    model = small_model("llama", dtype=torch.float32)
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda *arguments, layout=None, **options: forward(*arguments, **options)
    )
    engine, reason = choose_engine(model, LONGEST, 1000)
    assert engine == PADDED
    assert "packed log-probabilities differ by" in reason


@pytest.mark.parametrize("initializer_range", [0.02, 0.005])
def test_it_is_detected_in_a_model_with_small_weights(initializer_range, monkeypatch):
    """Untrained weights are so near zero that a mistake is small; the check must still see it."""
    model = small_model("llama", dtype=torch.float32, initializer_range=initializer_range)
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda *arguments, layout=None, **options: forward(*arguments, **options)
    )
    assert choose_engine(model, LONGEST, 1000)[0] == PADDED


def test_a_model_that_refuses_layouts_is_detected(monkeypatch):
    model = small_model("llama", dtype=torch.float32)
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda input_ids, logits_to_keep=0, use_cache=None: forward(
            input_ids, None, logits_to_keep=logits_to_keep
        ),
    )
    engine, reason = choose_engine(model, LONGEST, 1000)
    assert engine == PADDED
    assert reason.startswith("its forward pass refuses packed rows (") and "layout" in reason


@pytest.mark.parametrize("head", ["language", "reward"])
def test_an_adapter_is_not_a_reason_to_pad(head):
    """For a reward model, which has no LM head, the check compares scores."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = small_model("llama", dtype=torch.float32)
    if head == "reward":
        model.config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(
            model.config, attn_implementation=packed_attention.SHARED_PREFIX
        )
    assert choose_engine(model, LONGEST, 1000) == (PACKED, None)
    assert choose_engine(get_peft_model(model, LoraConfig(target_modules=["q_proj"])), LONGEST, 1000) == (
        PACKED,
        None,
    )


def test_the_check_leaves_the_model_unchanged():
    model = small_model("llama", dtype=torch.float32).train()
    choose_engine(model, LONGEST, 1000)
    assert model.training
    assert model.config._attn_implementation == packed_attention.SHARED_PREFIX
    assert all(weight.grad is None for weight in model.parameters())


def test_another_attention_is_padded_and_named_in_the_reason():
    model = small_model("llama", implementation="sdpa", dtype=torch.float32)
    assert choose_engine(model, LONGEST, 1000) == (PADDED, "model.attention=sdpa")


def test_the_reason_from_a_config():
    """A window counts only where layers use it: all without layer_types, unless it is switched off."""
    configs = [
        ({}, None),
        ({"sliding_window": 10}, "its window is 10 tokens and sequences have up to 22"),
        ({"sliding_window": 22}, None),
        ({"sliding_window": 10, "use_sliding_window": False}, None),
        ({"sliding_window": 10, "layer_types": ["full_attention"] * 2}, None),
        (
            {"sliding_window": 10, "layer_types": ["full_attention", "sliding_attention"]},
            "its window is 10 tokens and sequences have up to 22",
        ),
        ({"layer_types": ["mamba", "full_attention", "conv"]}, "its layers are conv and mamba"),
    ]
    assert [unsupported_reason(SimpleNamespace(**settings), 22) for settings, _ in configs] == [
        reason for _, reason in configs
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_generation_equals_that_of_plain_attention(family):
    """Left-padded prompts of several lengths, with a KV cache: tokens and logits equal SDPA's.

    Mistral's window is active.
    """
    settings = {"sliding_window": 6} if family == "mistral" else {}
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14], [15]]
    width = max(map(len, prompts))
    ids = torch.tensor([[2] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    outputs = [
        small_model(family, implementation=name, **settings).generate(
            ids,
            attention_mask=mask,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for name in (packed_attention.SHARED_PREFIX, "sdpa")
    ]
    assert outputs[0].sequences.tolist() == outputs[1].sequences.tolist()
    torch.testing.assert_close(
        torch.stack(outputs[0].logits), torch.stack(outputs[1].logits), rtol=1e-6, atol=1e-6
    )


def test_a_saved_model_does_not_name_the_labs_attention(tmp_path):
    """config.json must load where the lab is not installed."""
    small_model("llama", dtype=torch.float32).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text() + (tmp_path / "generation_config.json").read_text()
    assert packed_attention.SHARED_PREFIX not in text
    assert (
        not {"attn_implementation", "_attn_implementation"}
        & json.loads((tmp_path / "config.json").read_text()).keys()
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_a_model_with_a_missing_weight_is_one_sentence(tmp_path):
    """Random weights in a trained model would only show in its answers. A reward model's head may be new."""
    from safetensors.torch import load_file, save_file

    small_model("llama", dtype=torch.float32).save_pretrained(tmp_path)
    settings = Model(source=ModelSource.hub, path=str(tmp_path))
    assert load_model(settings, tmp_path, score_head=True).score.weight.shape[0] == 1
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    for score_head in (False, True):
        with pytest.raises(
            UserError, match=rf"a weight of it is not in its files and would be random, {name} for one; "
        ):
            load_model(settings, tmp_path, score_head=score_head)
