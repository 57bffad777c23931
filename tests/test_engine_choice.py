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
from alignment_lab.runtime.errors import RunError, UserError

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


OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5, "layerdrop": 0.5}


@pytest.mark.parametrize(
    ("family", "settings"), [("llama", {}), ("llama", {"attention_dropout": 0.5}), ("opt", OPT)], ids=str
)
def test_a_loaded_model_is_the_same_function_in_training(family, settings, tmp_path):
    """Policy and reference are one function at the start: no dropout, wherever a family keeps its rate."""
    small_model(family, dtype=torch.float32, **settings).save_pretrained(tmp_path)
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


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 12}
LONGROPE |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


@pytest.mark.usefixtures("in_float64")
def test_positions_that_change_with_the_longest_sequence_of_a_call_are_computed_one_by_one():
    """Rows of up to 22 tokens, of which long ones have other frequencies: no row may decide for another."""
    model = small_model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=12)
    assert choose_engine(model, 12, 1000) == (PACKED, None)
    engine, reason = choose_engine(model, LONGEST, 1000)
    assert engine == Engine(False, 1000, one_by_one=True)
    assert "its longrope positions change beyond 12 tokens and sequences have up to 22" in reason
    expected = plain_outputs(model, SEQUENCES)
    for max_tokens in (1000, 25, 1):
        outputs = engine_outputs(model, SEQUENCES, Engine(False, max_tokens, one_by_one=True))
        assert_outputs_equal(outputs, expected, 1e-12)


def test_positions_that_depend_on_earlier_calls_are_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = small_model("llama", dtype=torch.float32, rope_parameters=rope, max_position_embeddings=16)
    assert choose_engine(model, 16, 1000)[0] == PACKED
    with pytest.raises(UserError, match=r"model.path: .* beyond 16 tokens .* set data.max_length=16\."):
        choose_engine(model, LONGEST, 1000)


@pytest.mark.parametrize("world_size", [1, 3])
def test_processes_make_equally_many_calls_one_by_one(world_size, monkeypatch):
    """Under sharding a call is a collective: a process with fewer rows repeats one, which scores nothing."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    engine, calls, scored = Engine(False, 30, world_size, one_by_one=True), [], []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        batches = engine.local_batches(SEQUENCES)
        calls.append([len(batch.rows()) for batch in batches])
        scored += [id_ for batch in batches if not batch.is_filler for id_ in batch.sequence_ids.tolist()]
        for batch in batches:
            assert sum(len(row.targets) for row in batch.rows()) == len(batch.targets)
    assert all(one == calls[0] for one in calls)
    assert sorted(scored) == list(range(len(SEQUENCES)))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("kept", ["ignored", "unknown"])
def test_a_forward_that_does_not_cut_its_logits_is_exact(kept, monkeypatch):
    """As in remote code: it takes any keyword and gives all logits, or does not know the keyword at all.

    In a row of as many scored tokens as tokens, only their order tells cut logits from whole ones.
    """
    model = small_model("llama")
    expected = plain_outputs(model, SEQUENCES)
    forward = model.forward
    if kept == "ignored":
        monkeypatch.setattr(model, "forward", lambda logits_to_keep=0, **keywords: forward(**keywords))
    else:

        def plain(input_ids, position_ids=None, attention_mask=None, layout=None):
            return forward(input_ids, position_ids=position_ids, attention_mask=attention_mask, layout=layout)

        monkeypatch.setattr(model, "forward", plain)
    assert choose_engine(model, LONGEST, 1000) == (PACKED, None)
    for engine in (PACKED, PADDED, Engine(False, 1000, one_by_one=True), Engine(True, 4)):
        assert_outputs_equal(engine_outputs(model, SEQUENCES, engine), expected, 1e-12)


FAILURES = {
    "out of memory": (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
    "host memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
    "a kernel": (RuntimeError("CUDA error: no kernel image is available"), RunError),
    "another version of it": (TypeError("unexpected keyword argument"), RunError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_says_nothing_of_the_model_is_no_reason_to_pad(name, monkeypatch):
    """Memory and kernels: padding would hide that the run goes on slower, or another way, than it should."""
    error, expected = FAILURES[name]

    def fail(*_arguments, **_keywords):
        raise error

    monkeypatch.setattr(packed_attention, "has_kernel", lambda device: True)
    monkeypatch.setattr(packed_attention, "_kernel" if expected is RunError else "_varlen_attention", fail)
    model = small_model("llama", dtype=torch.bfloat16)
    with pytest.raises(expected, match=str(error)[:20]):
        choose_engine(model, LONGEST, 1000, dtype=torch.bfloat16)


def test_noise_in_training_is_refused(monkeypatch):
    """What no attribute of a module switches off makes the policy another function than its reference."""
    model = small_model("llama", dtype=torch.float32)
    embed = model.model.embed_tokens
    hook = embed.register_forward_hook(
        lambda module, _, output: torch.nn.functional.dropout(output, 0.5, module.training)
    )
    with pytest.raises(UserError, match="gives other log-probabilities in training mode, by"):
        choose_engine(model, LONGEST, 1000)
    hook.remove()
    assert choose_engine(model, LONGEST, 1000)[0] == PACKED


def test_a_model_that_sees_later_tokens_is_refused(monkeypatch):
    model = small_model("bert", implementation="eager", dtype=torch.float32, is_decoder=False)
    with pytest.raises(UserError, match="a token sees later ones"):
        choose_engine(model, LONGEST, 1000)


def test_a_rate_of_dropout_that_is_read_from_the_config_is_one_sentence():
    """Persimmon's attention asks its config in every call; the lab does not change a config that is saved."""
    model = small_model("persimmon", dtype=torch.float32, attention_dropout=0.3)
    with pytest.raises(UserError, match=r"model.path: .* in training mode .* in its config.json to 0"):
        choose_engine(model, LONGEST, 1000)


@pytest.mark.usefixtures("in_float64")
def test_what_was_proved_is_not_proved_again(monkeypatch, tmp_path):
    """The same weights at the same length call the model no more; others, or a damaged file, do."""
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path))
    calls = []

    def choose(family: str, weights: str, longest: int = LONGEST) -> int:
        """Chooses for a model loaded anew; gives the calls that it took."""
        model = small_model(family)
        model.register_forward_pre_hook(lambda *_: calls.append(family))
        calls.clear()
        engine, reason = choose_engine(model, longest, 1000, weights=weights)
        assert (engine, reason is None) == ((PACKED, True) if family == "llama" else (PADDED, False))
        assert_outputs_equal(engine_outputs(model, SEQUENCES, engine), plain_outputs(model, SEQUENCES), 1e-12)
        return len(calls) - len(SEQUENCES) - len(engine.batches(SEQUENCES))

    for family in ("llama", "stablelm"):
        assert choose(family, "a") > 3
        assert choose(family, "a") == 0
        assert choose(family, "b") > 3 and choose(family, "a", LONGEST + 1) > 3
    for file in (tmp_path / "layouts").iterdir():
        file.write_text("{")
    assert choose("llama", "a") > 3 and choose("llama", "a") == 0
