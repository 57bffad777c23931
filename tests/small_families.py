"""A tiny random model of every causal family of transformers, and what the lab makes of it.

`python tests/small_families.py [FAMILY ...]` prints the table.
"""

from __future__ import annotations

import inspect
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_models import engine_outputs, gradients, relative_difference, weighted_sum
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from alignment_lab.checkpoints import verify, weights
from alignment_lab.config import Model, ModelSource
from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.packing import ScoredSequence
from alignment_lab.models.loading import load_model
from alignment_lab.runtime.errors import UserError

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 96
LONGEST = 60
# every name that a family has for these sizes; a config takes those that it knows
SIZES: dict[str, Any] = (
    {"image_size": 16, "patch_size": 8}
    | {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2}
    | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 256}
    | {"initializer_range": 0.3, "is_decoder": True, "use_cache": True, "multi_query": True}
    | {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 256,
        "n_ctx": 256,
        "rotary_dim": 4,
    }
    | {"d_model": 32, "n_heads": 4, "n_layers": 2, "num_layers": 2, "max_seq_len": 256, "expansion_ratio": 2}
    | {"ffn_dim": 48, "num_heads": 4, "d_ff": 48, "attention_heads": 4, "word_embed_proj_dim": 32}
    | {"embedding_size": 32, "d_embed": 32, "d_inner": 48, "kv_channels": 8, "ffn_hidden_size": 48}
    | {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in [("layers", 2), ("ffn_dim", 48)]
    }
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    | {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "moe_k": 2}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    | {
        "n_group": 1,
        "topk_group": 1,
        "num_expert_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    }
    | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "qk_head_dim": 8}
    | {"v_head_dim": 8, "state_size": 4, "ssm_state_size": 4, "time_step_rank": 4, "use_mamba_kernels": False}
    | {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 8}
    | {"mamba_n_groups": 1, "mamba_chunk_size": 8, "mamba_d_ssm": 64, "mamba_dt_rank": 4, "n_mamba_heads": 1}
    | {"mamba_headdim": 8, "mamba_num_heads": 8, "mamba_head_dim": 8}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    | {"linear_value_head_dim": 8}
)
SPARSE = {"head_dim": 4, "index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
SPARSE |= {"num_key_value_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TWO_KINDS = ["sliding_attention", "full_attention"]
PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
PER_LAYER |= {"num_kv_shared_layers": 0}
VISION: dict[str, Any] = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48}
VISION |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
MORE: dict[str, dict[str, Any]] = {  # what a family needs besides
    "axk2": SPARSE,
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(TWO_KINDS, ROPE), "layer_types": TWO_KINDS},
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v32": SPARSE,
    "diffllama": {"attention_dropout": 0.0},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon": {"hidden_dropout": 0.0},
    "gemma3": {"vision_config": VISION, "mm_tokens_per_image": 4},
    "gemma3_text": {"sliding_window": 16, "layer_types": TWO_KINDS},
    "gemma3n_text": PER_LAYER | {"laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": PER_LAYER | {"global_head_dim": 8},
    "glm_moe_dsa": SPARSE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 4, "moe_topk": 2, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "mistral": {"sliding_window": None},
    "moshi": {"audio_vocab_size": 64},
    "persimmon": {"attention_dropout": 0.0},
    "prophetnet": {"num_decoder_layers": 2, "num_decoder_attention_heads": 4, "num_encoder_layers": 2},
    "reformer": {"attention_head_size": 8, "feed_forward_size": 48, "axial_pos_embds": False},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "hybrid", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
PARTS = "its parts have sizes that no config makes small"
NOT_BUILT: dict[str, str] = {  # and why
    "blt": "it reads bytes in patches, and its parts' sizes depend on each other",
    "dots3_note": PARTS,
    "emu3": "AutoModelForCausalLM does not build its config",
    "fuyu": PARTS,
    "gemma3n": "needs timm",
    "gemma4": "its audio model has no SDPA",
    "gemma4_assistant": "a draft model: it reads the states of another",
    "gemma4_unified_assistant": "a draft model: it reads the states of another",
    "got_ocr2": PARTS,
    "kimi_linear": "half a minute without its kernels",
    "mllama": "AutoModelForCausalLM does not build its config",
    "moss_transcribe_diarize": PARTS,
    "musicgen": "it predicts codes of audio, several at a position",
    "musicgen_melody": "it predicts codes of audio, several at a position",
    "zamba2": "its config has no small layout of layers that its own forward computes",
    "reformer": "plain transformers gives no gradient of it in evaluation mode",
}

# transformers sets the padding token's row to 0 whenever it loads one, whatever its file says
PADDING_ZEROED = {"youtu"}


@dataclass(frozen=True)
class Verdict:
    """What the lab does with a family."""

    family: str
    outcome: str  # packed, padded, one by one, refused, not built
    reason: str = ""


def tiny_config(config_class: type, **settings: Any) -> Any:
    """A config of this class with SIZES and `settings`, as are the configs inside of it."""
    known: set[str] = set()
    for base in config_class.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
        if "__init__" in vars(base):
            known |= set(inspect.signature(base.__init__).parameters)
    aliases = getattr(config_class, "attribute_map", {})
    values = {name: size for name, size in SIZES.items() if name in known or name in aliases}
    for alias, name in aliases.items():
        if alias in values and name in values:
            del values[alias]
    for name, inner in (getattr(config_class, "sub_configs", None) or {}).items():
        if hasattr(inner, "model_type") and inner.model_type:
            values[name] = tiny_config(inner, **MORE.get(inner.model_type, {})).to_dict()
    dropouts = [name for name in known if "drop" in name]
    rates = [name for name in dropouts if type(getattr(config_class, name, None)) in (int, float)]
    values |= dict.fromkeys(rates, 0.3) | settings  # none may be left in training
    return config_class(**{name: value for name, value in values.items() if value is not ...})


def build(family: str, folder: Path, **settings: Any) -> None:
    """A model of random weights in `folder`, none of them constant."""
    config = tiny_config(CONFIG_MAPPING[family], **MORE.get(family, {}) | settings)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > 6e7:
        raise ValueError(f"{size / 1e6:.0f} million weights: not tiny")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if (
                weight.is_floating_point()
                and weight.numel()
                and float(weight.float().var(correction=0)) < 1e-12
            ):
                weight += 0.1 * torch.randn(weight.shape, generator=generator).to(weight.dtype)
    model.eval().save_pretrained(folder)


def sequences(longest: int) -> list[ScoredSequence]:
    """Trees of several answers, prompts of one token to half of `longest`, a text without a prompt."""
    draw = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(count)]

    one, half = tokens(1), tokens(longest // 2)
    return [
        ScoredSequence(half, tokens(1)),
        ScoredSequence(one, tokens(6)),
        ScoredSequence(half, tokens(longest - len(half))),
        ScoredSequence([], tokens(9)),
        ScoredSequence(half, tokens(7)),
        ScoredSequence(one, tokens(11)),
    ]


def plain_outputs(folder: Path, scored: list[ScoredSequence]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probabilities and gradients by plain transformers, each sequence alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    logps = []
    for index, sequence in enumerate(scored):
        ids = torch.tensor([sequence.prompt + sequence.answer])
        positions, targets = zip(*sequence.scored_tokens(), strict=True)
        rows = model(input_ids=ids, use_cache=False).logits[0, [position - 1 for position in positions]]
        own = rows.log_softmax(-1)[range(len(targets)), targets]
        weighted_sum(index, own).backward()
        logps.append(own.detach())
    return logps, gradients(model)


def assert_same(
    outputs: tuple[list[Tensor], dict[str, Tensor]], expected: tuple[list[Tensor], dict[str, Tensor]]
) -> None:
    """Log-probabilities within 2e-3 nats, gradients within 5e-3 of the largest number of each, or of 1."""
    for one, other in zip(outputs[0], expected[0], strict=True):
        assert float((one - other).abs().max()) < 2e-3, (
            f"log-probabilities: {float((one - other).abs().max()):.2g} nats"
        )
    assert outputs[1].keys() == expected[1].keys(), (
        f"gradients: {sorted(outputs[1].keys() ^ expected[1].keys())[:3]}"
    )
    for name, gradient in outputs[1].items():
        difference = relative_difference(gradient, expected[1][name])
        assert difference < 5e-3, f"gradient of {name}: {difference:.2g}"


def assert_saved(model: Any, folder: Path) -> None:
    """After a change of every weight the lab's own saves hold it: a checkpoint by the model's names, the
    final files by those of the Hub, from which plain transformers gives the same log-probabilities. Before
    the first step a run checks the names alone.
    """
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                weight += 0.01 * torch.randn(weight.shape, generator=generator).to(weight.dtype)
        if model.config.model_type in PADDING_ZEROED:
            model.get_input_embeddings().weight[0] = 0
    outputs, state = verify.probe_outputs(model), weights.full_state(model)
    weights.save_checkpoint_weights(model, folder / "checkpoint")
    resumed = weights.load_weights(model, folder / "checkpoint")
    for name, weight in model.named_parameters():
        assert torch.equal(resumed[name], weight), f"checkpoint: {name}"
    weights.write_weights(model, state, folder / "final")
    verify.check_full_names(model, folder / "final", weights.saved_state(model, weights.meta_state(model)))
    verify.check_files(folder / "final", weights.saved_state(model, state).items())
    loaded = verify.load_saved(folder / "final", verify.LoadOptions())
    difference = float((verify.probe_outputs(loaded) - outputs).abs().max())
    assert difference < 1e-3, f"saved and loaded: {difference:.2g} nats"
    shutil.rmtree(folder)


def judge(family: str, folder: Path, longest: int = LONGEST, **settings: Any) -> Verdict:
    """Build it, load it as the lab does, hold it against plain transformers, and save it.

    Raises AssertionError where the lab would be wrong without a word.
    """
    build(family, folder, **settings)
    scored = sequences(longest)
    try:
        model = load_model(Model(source=ModelSource.hub, path=str(folder)), folder)
        engine, reason = choose_engine(model, longest, 4 * longest)
    except UserError as refusal:
        return Verdict(family, "refused", str(refusal))
    expected = plain_outputs(folder, scored)
    outputs = engine_outputs(model.train(), scored, engine)
    for gradient in (outputs[1], expected[1]):
        for name in [name for name, values in gradient.items() if not values.any()]:
            del gradient[name]  # without a gradient, or with one of zeros: a weight that had no part
    assert_same(outputs, expected)
    assert_saved(model, folder.with_name(f"{folder.name}-saved"))
    outcome = "packed" if engine.packed else "one by one" if engine.one_by_one else "padded"
    return Verdict(family, outcome, reason or "")


if __name__ == "__main__":
    import logging
    import signal
    import time
    import warnings

    from transformers.utils.logging import disable_progress_bar

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    def on_alarm(*_: object) -> None:
        raise RuntimeError("more than 15 seconds")

    signal.signal(signal.SIGVTALRM, on_alarm)
    disable_progress_bar()
    for family in sys.argv[1:] or FAMILIES:
        if family in NOT_BUILT:
            print(f"{family:28s} not built    {NOT_BUILT[family]}")
            continue
        started, folder = time.process_time(), Path(tempfile.mkdtemp())
        signal.setitimer(signal.ITIMER_VIRTUAL, 15)
        try:
            verdict = judge(family, folder)
            print(f"{family:28s} {verdict.outcome:12s} {verdict.reason}", end="")
        except AssertionError as error:
            print(f"{family:28s} WRONG        {error}"[:200], end="")
        except Exception as error:
            print(
                f"{family:28s} ERROR        {type(error).__name__}: {' '.join(str(error).split())[:160]}",
                end="",
            )
        print(f"   [{time.process_time() - started:.1f}s]", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
