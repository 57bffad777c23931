"""The engine in whole models: packed, padded and one by one are the same log-probabilities and the same gradients of every weight."""

import pytest
import torch
from small_models import ALONE, FAMILIES, LONGEST, SEQUENCES, asked, assert_same, expected, far, small
from test_attention import Kernel

from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.layout import Engine, ForwardBatch, _pack
from alignment_lab.engine.logprobs import score_sequences, sequence_scores
from alignment_lab.engine.packing import ScoredSequence, Tree
from alignment_lab.models import packed_attention

EXACT = 1e-12  # of float64, relative to the largest value of a kind
LAYOUTS = {
    "packed": Engine(True, 1000),
    "packed tightly": Engine(True, 12),
    "padded": Engine(False, 1000),
    "padded one by one": ALONE,
}


def unshared(sequences: list[ScoredSequence]) -> list[ForwardBatch]:
    """All in one row, each with a prompt of its own."""
    return [
        _pack(
            sequences,
            [Tree(len(one.prompt), [place], len(one), len(one)) for place, one in enumerate(sequences)],
        )
    ]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_is_plain_transformers(family):
    """Tokens that are alone, in a tree, padded or beside strangers: every layout of one set of sequences, to the last digits of float64.

    The truth is the model with eager attention, a sequence at a time. The lab packs these families, and says no reason not to.
    """
    model = small(family)
    true = expected(model, SEQUENCES)
    assert max(float(gradient.abs().max()) for gradient in true[1].values()) > 1
    for layout in (*LAYOUTS.values(), unshared(SEQUENCES)):
        assert_same(asked(model, SEQUENCES, layout), true, EXACT)
    assert choose_engine(model, LONGEST, 1000) == (LAYOUTS["packed"], None)
    model.train()  # as in a step, with activations computed twice
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layout in (LAYOUTS["packed"], LAYOUTS["padded"]):
        assert_same(asked(model, SEQUENCES, layout), true, EXACT)


@pytest.mark.usefixtures("in_float64")
def test_checkpointing_does_compute_twice(monkeypatch):
    """Else the test above would prove nothing: attention runs once more for each layer."""
    calls = []
    true = packed_attention._sdpa_by_segment
    monkeypatch.setattr(packed_attention, "_sdpa_by_segment", lambda *given: calls.append(1) or true(*given))
    model = small("llama").train()
    asked(model, SEQUENCES, LAYOUTS["packed"])
    assert len(calls) == 2
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    asked(model, SEQUENCES, LAYOUTS["packed"])
    assert len(calls) == 2 + 4


def adapted(family: str, targets: list[str], **settings):
    """A model with an adapter that has been trained: B is not zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        small(family), LoraConfig(r=3, lora_alpha=6, target_modules=targets, lora_dropout=0.0, **settings)
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
def test_an_adapter_changes_nothing_about_layouts(name):
    """Only the adapter has gradients, and in every layout the same."""
    model = adapted(*LORA[name])
    true = expected(model, SEQUENCES)
    assert true[1].keys() == {name for name, _ in model.named_parameters() if "lora_" in name}
    for layout in LAYOUTS.values():
        assert_same(asked(model, SEQUENCES, layout), true, EXACT)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(asked(model, SEQUENCES, LAYOUTS["packed"]), true, EXACT)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_four_bits(tmp_path):
    """QLoRA: weights in NF4, an adapter in float32. Dequantized, they are the same numbers for every layout."""
    pytest.importorskip("bitsandbytes", reason="NF4 needs bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    small("llama", dtype=torch.float32, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
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
    true = expected(model, SEQUENCES)
    for layout in LAYOUTS.values():
        assert_same(asked(model, SEQUENCES, layout), true, 1e-4)


def test_in_bfloat16_the_layouts_agree_to_its_own_rounding():
    """8 bits of mantissa: a log-probability of 8 nats is good to some hundredths."""
    model = small("llama", dtype=torch.bfloat16, initializer_range=0.1)
    found = [asked(model, SEQUENCES, layout)[0] for layout in LAYOUTS.values()]
    true = asked(model.float(), SEQUENCES, LAYOUTS["padded"])[0]
    for logps in found:
        assert max(float((one - two).abs().max()) for one, two in zip(logps, true, strict=True)) < 0.15


def test_under_autocast_the_layouts_agree():
    """As a run on an accelerator computes: float32 weights, bfloat16 products."""
    model = small("llama", dtype=torch.float32, initializer_range=0.1)
    true = asked(model, SEQUENCES, LAYOUTS["padded"])[0]
    for layout in LAYOUTS.values():
        found = score_sequences(model, SEQUENCES, layout, torch.bfloat16, iter)
        assert all(values.dtype is torch.float32 for values in found)
        apart = max(float((one - two).abs().max()) for one, two in zip(found, true, strict=True))
        assert 1e-5 < apart < 0.15  # not the same arithmetic, nearly the same numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_an_accelerators_kernel_is_given_is_what_it_takes(dtype, monkeypatch):
    """FlashAttention takes 16-bit numbers of one type. Weights are float32, and under autocast so are rotated queries, not values.

    In plain float32, for which there is no such kernel, rows are computed another way. Tensors of this machine say that they lie on
    an accelerator; the kernel is read by plain torch.
    """
    model = small("llama", dtype=torch.float32, initializer_range=0.1)
    true = asked(model, SEQUENCES, LAYOUTS["padded"])[0]
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", Kernel.varlen_attn)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    for engine in (LAYOUTS["packed"], LAYOUTS["packed tightly"]):
        found = score_sequences(model, SEQUENCES, engine, dtype, iter)
        apart = max(float((one - two).abs().max()) for one, two in zip(found, true, strict=True))
        assert apart < (0.15 if dtype is torch.bfloat16 else 1e-4)


def test_an_accelerator_is_no_reason_to_pad(monkeypatch):
    """The proof that a model can be packed must not fail for want of a kernel that training would not ask for."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", Kernel.varlen_attn)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    assert choose_engine(small("llama", dtype=torch.float32), LONGEST, 1000) == (Engine(True, 1000), None)


def test_scoring_keeps_the_sequences_order_and_the_models_mode():
    model = small("llama", dtype=torch.float32).train()
    true = asked(model, SEQUENCES, LAYOUTS["padded"])[0]
    for layout in LAYOUTS.values():
        found = score_sequences(model, SEQUENCES, layout, torch.float32, iter)
        assert all(far(one, two) < 1e-5 for one, two in zip(found, true, strict=True))
        assert not any(values.requires_grad for values in found)
        assert model.training


def test_a_reward_models_score_is_the_same_in_every_layout(in_float64):
    """The head at each sequence's last token, against one sequence at a time."""
    model = small("llama", scores=True)
    hidden = [
        model.model(input_ids=torch.tensor([one.prompt + one.answer])).last_hidden_state[0, -1]
        for one in SEQUENCES
    ]
    true = model.score(torch.stack(hidden))[:, 0]
    for layout in LAYOUTS.values():
        for batch in layout.batches(SEQUENCES):
            torch.testing.assert_close(
                sequence_scores(model, batch), true[batch.sequence_ids], rtol=EXACT, atol=EXACT
            )
