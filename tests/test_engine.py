"""The engine in whole models: every layout gives the same log-probabilities and the same gradients of every
weight.

The layouts are packed, padded and one by one.
"""

import pytest
import torch
from small_models import (
    FAMILIES,
    LONGEST,
    ONE_BY_ONE,
    SEQUENCES,
    assert_outputs_equal,
    engine_outputs,
    plain_outputs,
    relative_difference,
    small_model,
)
from test_attention import Kernel

from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.layout import Engine, ForwardBatch, _pack
from alignment_lab.engine.logprobs import score_sequences, sequence_scores, token_logprobs
from alignment_lab.engine.packing import ScoredSequence, Tree
from alignment_lab.models import packed_attention

EXACT = 1e-12  # of float64, relative to the largest value of a kind
LAYOUTS = {
    "packed": Engine(True, 1000),
    "packed tightly": Engine(True, 12),
    "padded": Engine(False, 1000),
    "padded one by one": ONE_BY_ONE,
}


def unshared(sequences: list[ScoredSequence]) -> list[ForwardBatch]:
    """All sequences in one row, each with its own copy of the prompt."""
    return [
        _pack(
            sequences,
            [
                Tree(len(sequence.prompt), [index], len(sequence), len(sequence))
                for index, sequence in enumerate(sequences)
            ],
        )
    ]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_is_plain_transformers(family):
    """Every layout of one set of sequences equals eager attention, one sequence at a time, in float64.

    The lab packs these families, and gives no reason not to.
    """
    model = small_model(family)
    expected = plain_outputs(model, SEQUENCES)
    assert max(float(gradient.abs().max()) for gradient in expected[1].values()) > 1
    for layout in (*LAYOUTS.values(), unshared(SEQUENCES)):
        assert_outputs_equal(engine_outputs(model, SEQUENCES, layout), expected, EXACT)
    assert choose_engine(model, LONGEST, 1000) == (LAYOUTS["packed"], None)
    model.train()  # as in a step, with activations computed twice
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layout in (LAYOUTS["packed"], LAYOUTS["padded"]):
        assert_outputs_equal(engine_outputs(model, SEQUENCES, layout), expected, EXACT)


@pytest.mark.usefixtures("in_float64")
def test_gradient_checkpointing_runs_attention_twice(monkeypatch):
    """Otherwise the test above would prove nothing: attention runs once more for each layer."""
    calls = []
    original = packed_attention._sdpa_by_segment
    monkeypatch.setattr(
        packed_attention, "_sdpa_by_segment", lambda *arguments: calls.append(1) or original(*arguments)
    )
    model = small_model("llama").train()
    engine_outputs(model, SEQUENCES, LAYOUTS["packed"])
    assert len(calls) == 2
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine_outputs(model, SEQUENCES, LAYOUTS["packed"])
    assert len(calls) == 2 + 4


def adapted(family: str, targets: list[str], **settings):
    """A model with an adapter that has been trained: B is not zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        small_model(family),
        LoraConfig(r=3, lora_alpha=6, target_modules=targets, lora_dropout=0.0, **settings),
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return model


LORA = {
    "attention": ("llama", ["q_proj", "v_proj"]),
    "everything": ("qwen3", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "the head too": ("llama", ["q_proj", "down_proj", "lm_head"]),
    "convolutions of GPT-2": ("gpt2", ["c_attn", "c_proj", "c_fc"]),
}


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", LORA)
def test_every_layout_is_equal_with_an_adapter(name):
    """Only the adapter has gradients, and they are equal in every layout."""
    model = adapted(*LORA[name])
    expected = plain_outputs(model, SEQUENCES)
    assert expected[1].keys() == {name for name, _ in model.named_parameters() if "lora_" in name}
    for layout in LAYOUTS.values():
        assert_outputs_equal(engine_outputs(model, SEQUENCES, layout), expected, EXACT)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_outputs_equal(engine_outputs(model, SEQUENCES, LAYOUTS["packed"]), expected, EXACT)


@pytest.mark.filterwarnings("ignore")
def test_every_layout_is_equal_with_an_adapter_on_4_bit_weights(tmp_path):
    """QLoRA: weights in NF4, an adapter in float32.

    Dequantized, they are the same numbers for every layout.
    """
    pytest.importorskip("bitsandbytes", reason="NF4 needs bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    small_model("llama", dtype=torch.float32, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=four_bits,
        attn_implementation=packed_attention.SHARED_PREFIX,
        dtype=torch.float32,
        device_map="cpu",
    )
    model = get_peft_model(
        model, LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    )
    assert any("4bit" in type(module).__name__ for module in model.modules())
    expected = plain_outputs(model, SEQUENCES)
    for layout in LAYOUTS.values():
        assert_outputs_equal(engine_outputs(model, SEQUENCES, layout), expected, 1e-4)


def test_in_bfloat16_the_layouts_agree_to_its_own_rounding():
    """8 bits of mantissa: a log-probability of 8 nats is exact to some hundredths."""
    model = small_model("llama", dtype=torch.bfloat16, initializer_range=0.1)
    outputs = [engine_outputs(model, SEQUENCES, layout)[0] for layout in LAYOUTS.values()]
    expected = engine_outputs(model.float(), SEQUENCES, LAYOUTS["padded"])[0]
    for logps in outputs:
        assert (
            max(float((actual - target).abs().max()) for actual, target in zip(logps, expected, strict=True))
            < 0.15
        )


def test_under_autocast_the_layouts_agree():
    """As a run on an accelerator computes: float32 weights, bfloat16 products."""
    model = small_model("llama", dtype=torch.float32, initializer_range=0.1)
    expected = engine_outputs(model, SEQUENCES, LAYOUTS["padded"])[0]
    for layout in LAYOUTS.values():
        outputs = score_sequences(model, SEQUENCES, layout, torch.bfloat16, iter)
        assert all(values.dtype is torch.float32 for values in outputs)
        difference = max(
            float((actual - target).abs().max()) for actual, target in zip(outputs, expected, strict=True)
        )
        assert 1e-5 < difference < 0.15  # not the same arithmetic, nearly the same numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_accelerator_kernel_gets_the_dtype_that_it_accepts(dtype, monkeypatch):
    """FlashAttention takes 16-bit numbers of one dtype.

    Under autocast rotated queries are float32, and values are not.

    In plain float32, which has no such kernel, rows are computed by SDPA. The tensors here are on the CPU,
    which only claims to have a kernel: a fake in plain torch.
    """
    model = small_model("llama", dtype=torch.float32, initializer_range=0.1)
    expected = engine_outputs(model, SEQUENCES, LAYOUTS["padded"])[0]
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", Kernel.varlen_attn)
    monkeypatch.setattr(packed_attention, "has_kernel", lambda device: True)
    for engine in (LAYOUTS["packed"], LAYOUTS["packed tightly"]):
        outputs = score_sequences(model, SEQUENCES, engine, dtype, iter)
        difference = max(
            float((actual - target).abs().max()) for actual, target in zip(outputs, expected, strict=True)
        )
        assert difference < (0.15 if dtype is torch.bfloat16 else 1e-4)


def test_an_accelerator_is_not_a_reason_to_pad(monkeypatch):
    """The check that a model can be packed must not fail for lack of a kernel that training does not use."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", Kernel.varlen_attn)
    monkeypatch.setattr(packed_attention, "has_kernel", lambda device: True)
    assert choose_engine(small_model("llama", dtype=torch.float32), LONGEST, 1000) == (
        Engine(True, 1000),
        None,
    )


def test_no_copy_of_the_logits_is_made_for_their_gradient():
    """A slice's or an index's backward fills zeros of the logits' size, the largest tensor of a pass."""
    model = small_model("llama")
    (batch,) = LAYOUTS["packed"].batches(SEQUENCES)
    node, names = token_logprobs(model, batch).logps.grad_fn, []
    while "Mm" not in (names or [""])[-1]:  # down to the head's product
        names.append(type(node).__name__)
        node = next(parent for parent, _ in node.next_functions if parent is not None)
    assert not [name for name in names if "Slice" in name or "Select" in name or "Index" in name], names


def test_scoring_keeps_the_sequences_order_and_the_models_mode():
    model = small_model("llama", dtype=torch.float32).train()
    expected = engine_outputs(model, SEQUENCES, LAYOUTS["padded"])[0]
    for layout in LAYOUTS.values():
        outputs = score_sequences(model, SEQUENCES, layout, torch.float32, iter)
        assert all(
            relative_difference(actual, target) < 1e-5
            for actual, target in zip(outputs, expected, strict=True)
        )
        assert not any(values.requires_grad for values in outputs)
        assert model.training


def test_a_reward_models_score_is_the_same_in_every_layout(in_float64):
    """The head at each sequence's last token, against one sequence at a time."""
    model = small_model("llama", score_head=True)
    hidden = [
        model.model(input_ids=torch.tensor([sequence.prompt + sequence.answer])).last_hidden_state[0, -1]
        for sequence in SEQUENCES
    ]
    expected = model.score(torch.stack(hidden))[:, 0]
    for layout in LAYOUTS.values():
        for batch in layout.batches(SEQUENCES):
            torch.testing.assert_close(
                sequence_scores(model, batch), expected[batch.sequence_ids], rtol=EXACT, atol=EXACT
            )
