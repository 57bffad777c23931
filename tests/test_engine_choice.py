"""The layout for a model: packed where exact, else padded with the reason, and equal numbers either way."""

import json
from types import SimpleNamespace

import pytest
import torch
from small_models import LONGEST, SEQUENCES, asked, assert_same, expected, small
from transformers import AutoModelForCausalLM

from alignment_lab.config import Model, ModelSource
from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.layout import Engine
from alignment_lab.models import packed_attention
from alignment_lab.models.loading import load_model
from alignment_lab.models.packed_attention import unsupported_reason
from alignment_lab.runtime.errors import UserError

PACKED, PADDED = Engine(True, 1000), Engine(False, 1000)
SEEN = {  # family, settings, why rows of 22 tokens are padded
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
    "who keeps layouts to itself": ("stablelm", {}, "packed and padded log-probabilities differ by"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", SEEN)
def test_a_model_is_packed_or_says_why_not_and_is_right(name):
    family, settings, why = SEEN[name]
    found = small(family, **settings)
    engine, reason = choose_engine(found, LONGEST, 1000)
    assert (engine, reason) == (PACKED, None) if why is None else (engine == PADDED and why in reason)
    assert_same(asked(found, SEQUENCES, engine), expected(found, SEQUENCES), 1e-12)


UNUSUAL = {  # what asks more of attention than softmax(QK)V, or takes no attention from outside
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
def test_an_unusual_model_is_right_as_the_lab_loads_it(name, tmp_path):
    """Against the same weights with eager attention, in float32.

    A model that the lab cannot serve would have to be a sentence instead.
    """
    family, settings = UNUSUAL[name]
    small(family, implementation="eager", dtype=torch.float32, **settings).save_pretrained(tmp_path)
    true = expected(
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval(), SEQUENCES
    )
    loaded = load_model(Model(source=ModelSource.hub, path=str(tmp_path)), tmp_path)
    engine, _ = choose_engine(loaded, LONGEST, 1000)
    assert_same(asked(loaded, SEQUENCES, engine), true, 1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"attention_dropout": 0.5}], ids=["as it is", "dropout in attention"]
)
def test_a_loaded_model_is_the_same_function_in_training(settings, tmp_path):
    """Policy and reference are one function at the start: no dropout, wherever a family keeps its rate."""
    small("llama", dtype=torch.float32, **settings).save_pretrained(tmp_path)
    loaded = load_model(Model(source=ModelSource.hub, path=str(tmp_path)), tmp_path)
    for engine in (PACKED, PADDED):
        assert_same(asked(loaded.train(), SEQUENCES, engine), asked(loaded.eval(), SEQUENCES, engine), 1e-6)


def test_a_model_that_ignores_layouts_is_found_out(monkeypatch):
    """Any model that reads its keywords one by one would lose the layout, and mix up all rows."""
    found = small("llama", dtype=torch.float32)
    true = found.model.forward
    monkeypatch.setattr(
        found.model, "forward", lambda *given, layout=None, **options: true(*given, **options)
    )
    engine, reason = choose_engine(found, LONGEST, 1000)
    assert engine == PADDED
    assert "packed and padded log-probabilities differ by" in reason


@pytest.mark.parametrize("initializer_range", [0.02, 0.005])
def test_it_is_found_out_in_a_model_that_hardly_attends(initializer_range, monkeypatch):
    """Untrained weights are so near zero that a mistake is small; the check must still see it."""
    found = small("llama", dtype=torch.float32, initializer_range=initializer_range)
    true = found.model.forward
    monkeypatch.setattr(
        found.model, "forward", lambda *given, layout=None, **options: true(*given, **options)
    )
    assert choose_engine(found, LONGEST, 1000)[0] == PADDED


def test_a_model_that_refuses_layouts_is_found_out(monkeypatch):
    found = small("llama", dtype=torch.float32)
    true = found.forward
    monkeypatch.setattr(
        found,
        "forward",
        lambda input_ids, logits_to_keep, use_cache: true(input_ids, None, logits_to_keep=logits_to_keep),
    )
    engine, reason = choose_engine(found, LONGEST, 1000)
    assert engine == PADDED
    assert reason.startswith("its forward pass refuses packed rows (") and "layout" in reason


@pytest.mark.parametrize("head", ["language", "reward"])
def test_an_adapter_is_no_reason_to_pad(head):
    """Of a reward model, whose head is no language model's, the proof looks at hidden states."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    found = small("llama", dtype=torch.float32)
    if head == "reward":
        found.config.num_labels = 1
        found = AutoModelForSequenceClassification.from_config(
            found.config, attn_implementation=packed_attention.SHARED_PREFIX
        )
    assert choose_engine(found, LONGEST, 1000) == (PACKED, None)
    assert choose_engine(get_peft_model(found, LoraConfig(target_modules=["q_proj"])), LONGEST, 1000) == (
        PACKED,
        None,
    )


def test_the_proof_leaves_the_model_as_it_was():
    found = small("llama", dtype=torch.float32).train()
    choose_engine(found, LONGEST, 1000)
    assert found.training
    assert found.config._attn_implementation == packed_attention.SHARED_PREFIX
    assert all(weight.grad is None for weight in found.parameters())


def test_another_attention_is_padded_and_named():
    found = small("llama", implementation="sdpa", dtype=torch.float32)
    assert choose_engine(found, LONGEST, 1000) == (PADDED, "model.attention=sdpa")


def test_what_a_config_says_of_its_layers():
    """A window counts only where layers use it: all without layer_types, unless it is switched off."""
    said = [
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
    assert [unsupported_reason(SimpleNamespace(**settings), 22) for settings, _ in said] == [
        why for _, why in said
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_generation_is_that_of_plain_attention(family):
    """Left-padded prompts of several lengths, with a KV cache: tokens and logits equal SDPA's.

    Mistral's window is active.
    """
    settings = {"sliding_window": 6} if family == "mistral" else {}
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14], [15]]
    width = max(map(len, prompts))
    ids = torch.tensor([[2] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = [
        small(family, implementation=name, **settings).generate(
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
    assert found[0].sequences.tolist() == found[1].sequences.tolist()
    torch.testing.assert_close(
        torch.stack(found[0].logits), torch.stack(found[1].logits), rtol=1e-6, atol=1e-6
    )


def test_a_saved_model_knows_nothing_of_the_labs_attention(tmp_path):
    """config.json must load where the lab is not installed."""
    small("llama", dtype=torch.float32).save_pretrained(tmp_path)
    said = (tmp_path / "config.json").read_text() + (tmp_path / "generation_config.json").read_text()
    assert packed_attention.SHARED_PREFIX not in said
    assert (
        not {"attn_implementation", "_attn_implementation"}
        & json.loads((tmp_path / "config.json").read_text()).keys()
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_a_model_with_a_missing_weight_is_one_sentence(tmp_path):
    """Random weights in a trained model would only show in its answers. A reward model's head may be new."""
    from safetensors.torch import load_file, save_file

    small("llama", dtype=torch.float32).save_pretrained(tmp_path)
    as_given = Model(source=ModelSource.hub, path=str(tmp_path))
    assert load_model(as_given, tmp_path, score_head=True).score.weight.shape[0] == 1
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
            load_model(as_given, tmp_path, score_head=score_head)
