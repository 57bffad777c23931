"""Parameters and bytes from a shape: by hand, as published, as measured, and monotonic."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignment_lab import estimate
from alignment_lab.config import Quantization
from alignment_lab.estimate import DEVICES, GB, Device, model_states

HUGE = Device("big", 1000, 1000)  # on which everything fits


def counts(spec):
    return estimate.parameter_counts(spec.model.shape, spec.parallel)


def estimate_for(spec, processes=1, device=HUGE):
    return estimate.estimate_memory(spec, spec.parallel, device, processes)


# ---- parameters


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
        ("smollm2-135m", 134_515_008),
        ("embedded", 134_515_008),
    ],
)
def test_parameter_counts_are_those_of_the_models(model, published, composed):
    """By hand for Llama 3.1.

    2 x 128256 x 4096 outside of the layers; 32 layers of 4096 (2 x 4096 + 2 x 1024 + 3 x 14336) + 2 x 4096;
    4096 at the end.
    """
    assert counts(composed([f"model={model}"])).total == published


def test_other_families_are_within_a_thousandth(composed):
    """Qwen3's norms of queries and keys are left out: 2 x 128 in each of 36 layers."""
    assert counts(composed(["model=qwen3-8b"])).total == pytest.approx(8_190_735_360, rel=1e-3)
    assert counts(composed(["model=gemma-7b"])).total == pytest.approx(8_537_680_896, rel=1e-3)


def test_a_reward_model_has_a_head_of_one_output(composed):
    spec = composed(["model=mistral-7b"])
    scores = estimate.parameter_counts(spec.model.shape, spec.parallel, scores=True)
    assert counts(spec).total - scores.total == 4096 * (32000 - 1)


def test_lora_beside_every_linear_layer(composed):
    """Mistral, rank 16: 16 (2 x 8192 + 2 x 5120 + 3 x 18432) = 1310720 a layer, 32 times.

    DoRA adds 3 x 4096 + 2 x 1024 + 2 x 14336.
    """
    lora = counts(composed(["model=mistral-7b", "parallel=lora"]))
    assert lora.adapter == lora.trained == 41_943_040
    assert (
        counts(composed(["model=mistral-7b", "parallel=lora", "parallel.rank=64"])).adapter
        == 4 * lora.adapter
    )
    dora = counts(composed(["model=mistral-7b", "parallel=lora", "parallel.adapter=dora"]))
    assert dora.adapter - lora.adapter == 32 * (3 * 4096 + 2 * 1024 + 2 * 14336)
    few = counts(composed(["model=mistral-7b", "parallel=lora", "parallel.targets=[q_proj,v_proj]"]))
    assert few.adapter == 32 * 16 * (8192 + 5120)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_transformers_and_peft_count_the_same(adapter, composed):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from alignment_lab.models.adapters import lora_config
    from alignment_lab.models.locate import llama_config

    spec = composed(["model=tiny", "parallel=lora", "parallel.rank=4", f"parallel.adapter={adapter}"])
    plain = AutoModelForCausalLM.from_config(llama_config(spec.model.shape))
    assert plain.num_parameters() == counts(spec).total
    adapted = get_peft_model(plain, lora_config(spec.parallel, score_head=False))
    assert (
        sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad) == counts(spec).adapter
    )


def test_the_shape_of_a_directory_is_what_its_config_says(composed, tmp_path):
    """Not that of the option, whose path was overridden; other families' keys are known as well."""
    (tmp_path / "config.json").write_text(
        json.dumps({"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 99})
    )
    shape = estimate.model_shape(composed(["model=mistral-7b", f"model.path={tmp_path}"]).model)
    assert (shape.layers, shape.hidden, shape.intermediate, shape.heads, shape.kv_heads, shape.head_dim) == (
        3,
        32,
        128,
        4,
        4,
        8,
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"num_hidden_layers": 5, "hidden_size": 64, "vocab_size": 99}})
    )
    assert estimate.model_shape(composed(["model=hub", f"model.path={tmp_path}"]).model).layers == 5
    (tmp_path / "config.json").write_text(json.dumps({"d_state": 5}))
    assert estimate.model_shape(composed(["model=hub", f"model.path={tmp_path}"]).model) is None


def test_the_shape_of_a_model_in_the_hubs_cache_is_known(composed, tmp_path, monkeypatch):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_hidden_layers": 5, "hidden_size": 64, "vocab_size": 99}))
    spec = composed(["model=hub", "model.path=org/name"])
    assert estimate.model_shape(spec.model) is None
    monkeypatch.setattr("alignment_lab.estimate.shape.hub_cached_file", lambda model, name: config)
    assert estimate.model_shape(spec.model).hidden == 64


# ---- memory

P = 7.241732  # parameters of Mistral, in billions


def fixed_gigabytes(spec, processes=1):
    """GB of the items that do not depend on tokens."""
    held = estimate_for(spec, processes).memory
    return {
        name: getattr(held, name) / GB for name in ("weights", "copies", "gradients", "optimizer", "adapter")
    }


@pytest.mark.parametrize(
    ("preset", "weights", "gradients", "optimizer"),
    [
        ("single", 4, 4, 8),
        ("ddp", 4, 4, 8),
        ("fsdp", 4 / 8, 4 / 8, 8 / 8),
        ("zero1", 2, 2, 12 / 8),
        ("zero2", 2, 2 / 8, 12 / 8),
        ("zero3", 2 / 8, 2 / 8, 12 / 8),
    ],
)
def test_sixteen_bytes_per_parameter_sharded_by_the_stage(preset, weights, gradients, optimizer, composed):
    """float32 weights, gradients and two moments.

    DeepSpeed has bfloat16 weights and gradients, and float32 master weights beside the moments.
    """
    gigabytes = fixed_gigabytes(
        composed(["model=mistral-7b", f"parallel={preset}"]), 1 if preset == "single" else 8
    )
    expected = [pytest.approx(size * P, abs=0.01) for size in (weights, gradients, optimizer)]
    assert [gigabytes[name] for name in ("weights", "gradients", "optimizer")] == expected
    assert gigabytes["adapter"] == 0


def test_autocast_keeps_a_bfloat16_copy_of_every_matrix_also_when_sharded(composed):
    """2 bytes for 6979321856 numbers in linear layers and 131072000 of the head.

    Measured: resident memory of a forward pass of 134M parameters grows by 288 MB under autocast, with or
    without checkpointing.
    """
    for preset, processes in (("single", 1), ("ddp", 8), ("fsdp", 8)):
        gigabytes = fixed_gigabytes(composed(["model=mistral-7b", f"parallel={preset}"]), processes)
        assert gigabytes["copies"] == pytest.approx(2 * 7.110394, abs=1e-3)
    assert fixed_gigabytes(composed(["model=mistral-7b", "parallel=zero3"]), 8)["copies"] == 0
    assert fixed_gigabytes(composed(["model=mistral-7b", "model.dtype=float32"]))["copies"] == 0


@pytest.mark.parametrize(
    ("preset", "base", "cut"),
    [("lora", 2 * P, 1), ("fsdp_lora", 2 * P / 8, 8), ("zero3_lora", 2 * P / 8, 8), ("qlora", 4.125, 1)],
)
def test_a_frozen_base_is_kept_in_the_dtype_of_computation(preset, base, cut, composed):
    """qlora: 6979321856 numbers of 0.5 + 1/64 + 4/16384 bytes and 262410240 of 2: 3.600 + 0.525 GB.

    The adapter has 16 bytes a number.
    """
    gigabytes = fixed_gigabytes(composed(["model=mistral-7b", f"parallel={preset}"]), 8)
    assert gigabytes["weights"] == pytest.approx(base, abs=0.001)
    assert gigabytes["gradients"] == gigabytes["optimizer"] == 0
    assert gigabytes["adapter"] == pytest.approx(16 * 0.04194304 / cut, abs=0.001)


def test_int8_takes_one_byte(composed):
    spec = composed(["model=mistral-7b", "parallel=qlora", "parallel.quantization=int8"])
    assert fixed_gigabytes(spec)["weights"] == pytest.approx(6.979 + 0.525, abs=0.001)


def test_nf4_takes_as_much_as_in_bitsandbytes():
    functional = pytest.importorskip(
        "bitsandbytes", reason="the extra `quantization` is not installed"
    ).functional
    import torch

    stored, state = functional.quantize_4bit(
        torch.randn(1024, 1024).bfloat16(), quant_type="nf4", compress_statistics=True
    )
    taken = sum(tensor.nbytes for tensor in (stored, state.absmax, state.state2.absmax))
    assert taken / 1024**2 == pytest.approx(model_states.QUANTIZED_BYTES[Quantization.nf4], abs=1e-5)


def test_other_optimizers_have_other_moments(composed):
    assert fixed_gigabytes(composed(["model=mistral-7b", "training.optim=sgd"]))["optimizer"] == 0
    assert fixed_gigabytes(composed(["model=mistral-7b", "training.optim=rmsprop"]))[
        "optimizer"
    ] == pytest.approx(4 * P, abs=0.01)


def test_offloaded_weights_are_in_host_memory(composed):
    need = estimate_for(composed(["model=mistral-7b", "parallel=zero3_offload"]), 4)
    assert need.memory.weights == need.memory.optimizer == need.memory.gradients == 0
    assert need.host_bytes * 4 / GB == pytest.approx(16 * P, abs=0.01)


def test_deepspeed_needs_room_for_float32_weights_while_loading(composed):
    """On 64 devices ZeRO-2 keeps 2 + 14 / 64 bytes per parameter.

    While loading it needs 4, for which 24 GB are too few.
    """
    need = estimate_for(
        composed(["model=mistral-7b", "parallel=zero2", "training.micro_tokens=1"]), 64, DEVICES["rtx4090"]
    )
    assert need.memory.total < need.capacity < need.loading_bytes == pytest.approx(4 * P * GB + GB, rel=1e-3)
    assert not need.fits


def test_a_reference_takes_no_memory_and_a_reward_model_has_no_logits(composed):
    assert estimate_for(composed(["model=mistral-7b", "method=dpo"])).memory.reference == 0
    assert estimate_for(composed(["model=mistral-7b", "method=reward"])).memory.logits == 0


@pytest.mark.parametrize(
    "preset", ["zero1", "zero2", "zero3", "fsdp", "zero3_lora", "fsdp_lora", "fsdp_qlora", "zero3_offload"]
)
def test_more_processes_never_need_more_on_each(preset, composed):
    spec = composed(
        [
            "model=mistral-7b",
            f"parallel={preset}",
            "training.micro_tokens=4096",
            "training.gradient_checkpointing=true",
        ]
    )
    totals = [estimate_for(spec, processes).memory.total for processes in (1, 2, 3, 4, 8, 64)]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("model", ["tiny", "embedded", "qwen3-0.6b", "llama-3.1-8b", "gemma-7b"])
def test_checkpointing_never_needs_more(model, composed):
    spec = [f"model={model}", "training.micro_tokens=4096"]
    kept, again = (
        estimate_for(composed([*spec, f"training.gradient_checkpointing={word}"])).memory.total
        for word in ("false", "true")
    )
    assert again <= kept


def test_longer_passes_need_more_and_a_row_is_never_split(composed):
    """Pairs of at most 2 x 1024 tokens: below that, micro_tokens saves nothing."""
    overrides_by_tokens = [
        ["model=mistral-7b", "data.max_length=1024", f"training.micro_tokens={tokens}"]
        for tokens in (1, 2048, 4096, 16384)
    ]
    totals = [estimate_for(composed(overrides)).memory.total for overrides in overrides_by_tokens]
    assert totals[0] == totals[1] < totals[2] < totals[3]


@pytest.mark.parametrize(("tokens", "measured"), [(512, 2.9), (1024, 3.9), (2048, 5.6), (4096, 9.9)])
def test_the_estimate_exceeds_measurements_by_at_most_a_third(tokens, measured, composed):
    """docs/LOG.md: peaks of the embedded model in float32 by tokens per pass."""
    spec = composed(
        [f"training.micro_tokens={tokens}", "training.gradient_checkpointing=false", "data.max_length=128"]
    )
    assert measured <= estimate_for(spec, device=DEVICES["cpu"]).memory.total / GB <= 4 / 3 * measured


def workload(longest=320, step=1700, scored=900):
    """A workload as a plan measures it."""
    return estimate.Workload(60, 200.0, 100.0, longest, step, scored)


def largest_pass(composed, overrides, rows):
    spec = composed(["model=embedded", *overrides])
    need = estimate.estimate_memory(spec, spec.parallel, HUGE, 1, rows)
    return need.micro_batch_tokens, need.memory.logits // (4 * 49152)


def test_known_rows_bound_a_pass(composed):
    """The smallest of the limit of a row, the longest row, and all rows of a step.

    There are no more logits than scored tokens.
    """
    limits = ["data.max_length=256", "training.micro_tokens=64"]
    assert largest_pass(composed, limits, None) == (512, 512)
    assert largest_pass(composed, limits, workload()) == (320, 320)
    assert largest_pass(composed, limits, workload(longest=9999)) == (512, 512)
    long = ["data.max_length=1024", "training.micro_tokens=1024"]
    assert largest_pass(composed, long, None) == (2048, 2048)
    assert largest_pass(composed, long, workload()) == (1024, 900)
    assert largest_pass(composed, long, workload(step=600, scored=300)) == (600, 300)


def test_with_padding_known_rows_bound_nothing(composed):
    overrides = ["data.max_length=256", "training.micro_tokens=64", "model.attention=sdpa"]
    assert largest_pass(composed, overrides, workload()) == (512, 512)


# docs/LOG.md: peak GB of the embedded model on 60 rows of hh, by data.max_length = training.micro_tokens.
MEASURED = [
    ("single", 256, 3.66),
    ("single", 1024, 4.54),
    ("lora", 256, 2.05),
    ("lora", 1024, 4.27),
    ("qlora", 256, 1.78),
    ("qlora", 1024, 4.23),
]


@pytest.mark.parametrize(("preset", "tokens", "peak"), MEASURED)
def test_the_peak_of_a_run_on_a_cpu_is_estimated_within_a_fifth(preset, tokens, peak, composed):
    """The bounds of rows are those of a plan for hh at this length."""
    spec = composed([f"parallel={preset}", f"data.max_length={tokens}", f"training.micro_tokens={tokens}"])
    rows = workload(408, 2903, 1946) if tokens == 256 else workload(717, 3802, 2337)
    need = estimate.estimate_memory(spec, spec.parallel, DEVICES["cpu"], 1, rows)
    assert 0.8 <= need.peak / GB / peak <= 1.2


def test_gradients_and_moments_fill_the_holes_of_the_heap(composed):
    """With an adapter they are too small, and six tenths of the activations are lost.

    With full training the usual tenth is lost.
    """
    spec = ["model=embedded", "training.micro_tokens=512", "data.max_length=256"]
    whole, lora = (
        estimate_for(composed([*spec, f"parallel={preset}"]), device=DEVICES["cpu"]).memory
        for preset in ("single", "lora")
    )
    assert whole.fragments == int(0.1 * (whole.activations + whole.logits))
    assert lora.fragments == int(0.6 * lora.activations)


def test_a_pass_leaves_room_for_fragmentation(composed):
    """Whatever memory is free on a CPU, the pass chosen for an adapter fits, if a row does."""
    for gb in (2, 2.5, 3, 4, 8):
        device = Device("cpu", gb, 0.18, accelerator=False)
        assert estimate_for(
            composed(["model=embedded", "parallel=lora", "data.max_length=64"]), device=device
        ).fits, gb


def test_a_quantized_model_does_not_keep_its_file_mapped(composed):
    """safetensors maps the file: one tensor in it keeps all pages resident, 0.4 GB for the embedded model."""
    pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    import torch

    from alignment_lab.models.loading import load_policy
    from alignment_lab.models.locate import locate_model

    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system has no /proc/self/maps")
    spec = composed(["model=tiny", "parallel=qlora", "parallel.device=cpu"])
    folder = locate_model(spec.model)
    policy = load_policy(spec, folder, torch.device("cpu"), torch.float32)
    assert policy.get_input_embeddings().weight.device.type == "cpu"
    assert str(folder.resolve()) not in maps.read_text()


def test_processes_on_a_cpu_share_its_memory(composed):
    on_one, on_two = (
        estimate_for(composed(["parallel=ddp"]), count, DEVICES["cpu"]).capacity for count in (1, 2)
    )
    assert on_one == pytest.approx(2 * on_two, abs=2)


# ---- the largest forward pass that pays and fits

CONFIG = SimpleNamespace(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152)
CONFIG_OF_EMBEDDED = SimpleNamespace(
    **vars(CONFIG), num_attention_heads=9, num_key_value_heads=3, head_dim=64
)
SETTINGS = {
    "trained": 134_515_008,
    "dtype_bytes": 4,
    "longest_row": 400,
    "cuda": False,
    "tokens": None,
    "checkpointing": None,
}


def test_the_bytes_of_a_token_are_as_measured(composed):
    """30 layers of 8 x 576 + 6 x 1536 numbers, and 49152 logits, 4 bytes each: 1.66 MB and 0.2 MB."""
    assert estimate.activation_bytes(CONFIG, 1, 4) == 4 * (30 * (8 * 576 + 6 * 1536) + 49152)
    assert estimate.activation_bytes(CONFIG, 10, 2) == 10 * (2 * 30 * (8 * 576 + 6 * 1536) + 4 * 49152)
    kept = 30 * 576 + 8 * 576 + 6 * 1536
    assert estimate.activation_bytes(CONFIG, 1, 4, checkpointing=True) == 4 * (kept + 49152)
    assert estimate.activation_bytes(composed([]).model.shape, 7, 2) == estimate.activation_bytes(
        CONFIG, 7, 2
    )


def test_the_pass_fills_what_states_leave_of_the_memory_fraction():
    """0.8 of 20 GB minus 12 bytes per parameter are 14.4 GB, more than 1024 tokens need.

    Of 3 GB they are 0.786 GB: 423 tokens of 1.855 MB.
    """
    assert estimate.plan_micro_batch(CONFIG, free_bytes=20 * GB, **SETTINGS) == estimate.MicroBatchPlan(
        1024, False
    )
    assert estimate.plan_micro_batch(CONFIG, free_bytes=3 * GB, **SETTINGS) == estimate.MicroBatchPlan(
        423, False
    )
    assert estimate.plan_micro_batch(
        CONFIG, free_bytes=80 * GB, **{**SETTINGS, "cuda": True, "dtype_bytes": 2}
    ) == estimate.MicroBatchPlan(16384, False)


@pytest.mark.parametrize("free", [20, 3, 2.5, 1])
def test_on_one_device_in_float32_a_run_decides_as_plan_micro_batch(free, composed):
    spec = composed(["model=embedded"])
    chosen = estimate.choose_micro_batch(
        spec,
        CONFIG_OF_EMBEDDED,
        dtype_bytes=4,
        free_bytes=int(free * GB),
        longest_row=400,
        cuda=False,
        processes=1,
    )
    assert chosen == estimate.plan_micro_batch(
        CONFIG, free_bytes=int(free * GB), **{**SETTINGS, "trained": counts(spec).total}
    )


@pytest.mark.parametrize(
    ("preset", "free"), [("zero3", 78 - 2 * P / 8), ("fsdp", 78), ("zero2", 78 - 4 * P), ("lora", 78 - 2 * P)]
)
def test_a_run_on_eight_devices_decides_as_its_plan(preset, free, composed):
    """79 GB without the context, minus the loaded model.

    That is sharded weights, nothing yet, whole float32 weights, the frozen base.
    """
    spec = composed(["model=mistral-7b", f"parallel={preset}", "data.max_length=256"])
    shape = spec.model.shape
    config = SimpleNamespace(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    chosen = estimate.choose_micro_batch(
        spec, config, dtype_bytes=2, free_bytes=int((free + 1) * GB), longest_row=512, cuda=True, processes=8
    )
    planned = estimate_for(spec, 8, DEVICES["h100"]).micro_batch
    assert chosen.checkpointing == planned.checkpointing
    assert chosen.tokens == pytest.approx(planned.tokens, abs=2)
    assert chosen.tokens > 512


def test_checkpointing_is_used_only_where_the_longest_row_would_not_fit():
    plan = estimate.plan_micro_batch(CONFIG, free_bytes=int(2.5 * GB), **SETTINGS)
    assert plan.checkpointing and plan.tokens > 400
    assert estimate.plan_micro_batch(
        CONFIG, free_bytes=GB, **{**SETTINGS, "tokens": 64, "checkpointing": False}
    ) == estimate.MicroBatchPlan(64, False)
