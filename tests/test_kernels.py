"""Fused kernels are the functions that they replace: numbers, gradients, and what is left alone.

What is written in Triton runs in its interpreter, where Triton is installed, or on an accelerator.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from small_models import (
    LONGEST,
    SEQUENCES,
    assert_outputs_equal,
    engine_outputs,
    plain_outputs,
    relative_difference,
    small_model,
)

from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.layout import Engine
from alignment_lab.engine.logprobs import token_logprobs
from alignment_lab.models.fused import choice, head, lora
from alignment_lab.models.fused.patch import MARK, patch, stock_forwards, techniques_of

CPU = torch.device("cpu")
PACKED = Engine(packed=True, max_tokens=1000)
HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1" or DEVICE.type == "cuda"
with_triton = pytest.mark.skipif(
    not (HAS_TRITON and INTERPRETER), reason="needs triton, and TRITON_INTERPRET=1 or an accelerator"
)
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(family: str, dtype: torch.dtype = torch.float64, base: torch.dtype | None = None, **settings):
    """A model with an adapter whose B is not zero, on a base of another type where it is given."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": ALL_LINEAR} | settings)
    model = get_peft_model(small_model(family, dtype=base or dtype), config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator, dtype=dtype)
    return model


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("family", "with_lora"), [("qwen2", True), ("llama", True), ("smollm3", False)])
def test_a_patched_model_is_plain_transformers_to_the_last_digits(family, with_lora, monkeypatch):
    """LoRA (qwen2 has biases) and the head in blocks of 3 rows, of which one is kept."""
    monkeypatch.setattr(head, "BLOCK_BYTES", 3 * 64 * 8)
    model = adapted(family) if with_lora else small_model(family)
    expected = plain_outputs(model, SEQUENCES)
    choice.use_kernels(model, CPU, torch.float64)
    assert techniques_of(model) == (["LoRA", "head"] if with_lora else ["head"])
    assert_outputs_equal(engine_outputs(model, SEQUENCES, PACKED), expected, 1e-12)
    twin = copy.deepcopy(model)  # its patches are its own
    with stock_forwards(model):
        assert techniques_of(model) == []
        assert techniques_of(twin) != []
    if with_lora:
        model.train()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert_outputs_equal(engine_outputs(model, SEQUENCES, PACKED), expected, 1e-12)
        with model.disable_adapter(), torch.no_grad():
            (batch,) = PACKED.batches(SEQUENCES)
            reference = token_logprobs(model, batch).logps
            with stock_forwards(model):
                torch.testing.assert_close(token_logprobs(model, batch).logps, reference)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("kept", [0, 2, 100])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_head_in_blocks_is_a_log_softmax(rows, kept):
    x, weight = torch.randn(11, 7, requires_grad=True), torch.randn(29, 7, requires_grad=True)
    targets, upstream = torch.arange(11) * 2, torch.randn(11)
    request = head.Request(targets, log_sum_squares=True, is_argmax=True)
    logps, squares, argmax = head.LinearLogprobs.apply(x, weight, request, rows, kept)
    probabilities = (x @ weight.t()).log_softmax(-1)
    expected = probabilities.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logps, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(squares, (2 * probabilities).logsumexp(-1), rtol=1e-12, atol=1e-12)
    assert argmax.equal(probabilities.argmax(-1) == targets)
    for actual, target in zip(
        torch.autograd.grad(logps, (x, weight), upstream, retain_graph=True),
        torch.autograd.grad(expected, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(actual, target, rtol=1e-12, atol=1e-12)
    if kept:
        with pytest.raises(AssertionError, match="works once"):
            torch.autograd.grad(logps, (x, weight), upstream)


MORE_THAN_LORA = {
    "dropout": {"lora_dropout": 0.5},
    "DoRA": {"use_dora": True},
    "a bias of the adapter": {"lora_bias": True},
    "a trained bias": {"bias": "all"},
}


@pytest.mark.parametrize("what", [*MORE_THAN_LORA, "another adapter", "merged"])
def test_what_is_more_than_plain_lora_stays_with_peft(what):
    from peft import LoraConfig

    family = "qwen2" if what == "a trained bias" else "llama"
    model = adapted(family, target_modules=["q_proj"], **MORE_THAN_LORA.get(what, {})).train()
    if what == "another adapter":
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    choice.use_kernels(model, CPU, torch.float64)
    if what == "merged":
        assert getattr(layer, MARK) == "LoRA"
        x = torch.randn(2, 3, 32, dtype=torch.float64)
        before = layer(x)
        layer.merge()
        torch.testing.assert_close(layer(x), before)
        torch.testing.assert_close(layer(x), layer.base_layer(x))
    else:
        assert "LoRA" not in techniques_of(model)


def test_under_autocast_an_adapter_is_computed_in_16_bits_and_trained_in_32():
    model = adapted("llama", torch.float32, base=torch.bfloat16)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(5, 32).bfloat16().requires_grad_()
    weights = (x, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    results = []
    for function in (layer, lambda x: lora.lora_forward(layer, x)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = function(x)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), weights)])
    for stock, fused in zip(*results, strict=True):
        assert stock.dtype is fused.dtype
        assert relative_difference(fused.float(), stock.float()) < 0.02


def test_a_technique_that_computes_something_else_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(lora.LoraLinear, "forward", lambda ctx, x, weight, *_: x @ weight.t())
    model = adapted("llama")
    problems = choice.use_kernels(model, CPU, torch.float64)
    assert any(problem.startswith("LoRA: ") for problem in problems)
    assert techniques_of(model) == ["head"]


def test_kernels_that_change_a_models_log_probabilities_are_taken_from_it():
    """Each may pass by itself and the whole still differ: the layout's proof sees it, and stays packed."""
    model = small_model("llama", dtype=torch.float32)
    patch(model.model.norm, "RMSNorm", lambda module, x: 2 * type(module).forward(module, x))
    assert choose_engine(model, LONGEST, 1000) == (PACKED, None)
    assert techniques_of(model) == []


@with_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "smollm3"])
def test_a_model_with_every_kernel_is_the_stock_one(family, dtype):
    """Heads of 12 numbers, 3 of them: nothing is a power of two; weights of norms are not all one."""
    shape = {"hidden_size": 36, "head_dim": 12, "num_attention_heads": 3, "num_key_value_heads": 1}
    model = small_model(family, dtype=torch.float32, **shape).to(DEVICE)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.randn_like(weight)

    def outputs():
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            return engine_outputs(model, SEQUENCES, PACKED)

    expected = outputs()
    assert choice.use_kernels(model, DEVICE, dtype) == []
    swiglu = [] if family == "gemma" else ["SwiGLU"]
    assert techniques_of(model) == ["RMSNorm", "RoPE", *swiglu, "head"]
    if dtype is torch.float32:
        assert_outputs_equal(outputs(), expected, 1e-5)
    else:  # rounded at other places: as a whole, not number by number
        for actual, target in zip(outputs()[1].values(), expected[1].values(), strict=True):
            assert torch.cosine_similarity(actual.flatten(), target.flatten(), dim=0) > 0.98


@with_triton
@pytest.mark.parametrize("width", [5000, 64])
def test_the_triton_log_softmax_is_that_of_torch(width):
    """Longer than a block, and shorter; with ties for the highest, of which the first counts."""
    logits = torch.randn(6, width, device=DEVICE).mul_(4).round_()
    targets = logits.argmax(-1)
    targets[::2] = width - 1
    request = head.Request(targets, log_sum_squares=True, is_argmax=True)
    weight = torch.eye(6, device=DEVICE)  # the rows of logits are the products
    x = weight.clone().requires_grad_()
    matrix = logits.t().contiguous().requires_grad_()
    logps, squares, argmax = head.LinearLogprobs.apply(x, matrix, request, 4, 1)
    expected = (x @ matrix.t()).log_softmax(-1)
    picked = expected.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logps, picked)
    torch.testing.assert_close(squares, (2 * expected).logsumexp(-1))
    assert argmax.equal(logits.argmax(-1) == targets)
    upstream = torch.randn(6, device=DEVICE)
    actual = torch.autograd.grad(logps, (x, matrix), upstream, retain_graph=True)
    for one, other in zip(actual, torch.autograd.grad(picked, (x, matrix), upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from alignment_lab.models.fused import log_softmax, rms_norm, rope, swiglu
KERNELS = [
    (log_softmax._score, {"SQUARES": True, "ARGMAX": True, "BLOCK": 4096}),
    (log_softmax._gradient, {"BLOCK": 4096}),
    (rms_norm._forward, {"ONE_PLUS": False, "ROWS": 1, "BLOCK": 4096}),
    (rms_norm._backward, {"ONE_PLUS": False, "TRAINED": True, "ROWS": 16, "BLOCK": 128}),
    (swiglu._forward, {"BLOCK": 4096}),
    (swiglu._backward, {"BLOCK": 4096}),
    (rope._rotate, {"Q_HEADS": 32, "K_HEADS": 8, "HALF": 64, "BACKWARD": True}),
]
TYPES = {"targets_ptr": "*i64", "argmax_ptr": "*i1", "eps": "fp32", "scales_ptr": "*fp32"}
for kernel, constants in KERNELS:
    kinds = {
        name: "constexpr" if name in constants
        else TYPES.get(name, "*bf16" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    triton.compile(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", 90, 32))
"""


@with_triton
@pytest.mark.slow
def test_every_kernel_compiles_for_cuda_without_an_accelerator(tmp_path):
    """The interpreter takes what the compiler refuses."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
