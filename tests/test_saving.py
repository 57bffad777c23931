"""What a run leaves: a model that plain transformers loads, or a sentence before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from small_saves import in_this_process, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from alignment_lab import data
from alignment_lab.actions import run_action, tokenized
from alignment_lab.checkpoints import verify, weights
from alignment_lab.estimate.weights import weight_problems
from alignment_lab.models.embedded import embedded_weights
from alignment_lab.models.generation_config import set_generation_config
from alignment_lab.models.locate import locate_model
from alignment_lab.runtime.errors import RunError, UserError
from alignment_lab.runtime.files import file_digest
from alignment_lab.runtime.run_directory import RunDirectory

__all__ = ["in_this_process"]  # a fixture
SHORT = [
    "model=hub",
    "model.dtype=float32",
    "parallel.device=cpu",
    "training.max_steps=2",
    "training.save_steps=1",
    "training.global_batch=2",
    "training.learning_rate=1e-2",
    "eval=none",
]
DECODER = {
    "vocab_size": 49152,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# of each kind whose files have other names than memory: experts apart, and a text model inside of another
RENAMED: dict[str, dict[str, Any]] = {
    "mixtral": DECODER | EXPERTS,
    "qwen3_moe": DECODER | EXPERTS,
    "gemma3": {
        "text_config": DECODER | {"sliding_window": 16},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
}


def family_model(folder: Path, family: str) -> Path:
    """A tiny model of a family with the embedded tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **RENAMED[family])).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_weights()).save_pretrained(folder)
    return folder


def names_in(folder: Path) -> set[str]:
    return {
        name
        for file in folder.glob("model*.safetensors")
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    }


@pytest.mark.parametrize("family", RENAMED)
def test_names_in_files_are_transformers_own(family, tmp_path):
    """A checkpoint gives every weight back by its name; transformers takes what a save would write."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **RENAMED[family]))
    weights.save_checkpoint_weights(model, tmp_path / "checkpoint")
    resumed = weights.load_weights(model, tmp_path / "checkpoint")
    assert all(torch.equal(resumed[name], weight) for name, weight in model.named_parameters())
    state = weights.full_state(model)
    weights.write_weights(model, state, tmp_path / "final")
    verify.check_files(tmp_path / "final", weights.saved_state(model, state).items())
    loaded = verify.load_saved(tmp_path / "final", verify.LoadOptions())
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    on_meta = weights.saved_state(model, weights.meta_state(model))
    verify.check_full_names(model, tmp_path / "final", on_meta)
    left_out = next(name for name in on_meta if name.endswith("norm.weight"))
    with pytest.raises(UserError, match=f"would lack .*{left_out.rpartition('.layers')[2]}"):
        verify.check_full_names(
            model, tmp_path / "final", {name: value for name, value in on_meta.items() if name != left_out}
        )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), [("mixtral", "sft"), ("gemma3", "kto")])
def test_a_family_with_other_names_in_files_is_saved_and_resumed(
    family, method, composed, tmp_path, in_this_process
):
    """The final model has the base's names; a run that goes on from its first checkpoint ends alike."""
    base = family_model(tmp_path / "base", family)
    run, again = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "again")
    spec = composed([*SHORT, f"method={method}", f"model.path={base}"])
    run_action(spec, run)
    assert names_in(run.model) == names_in(base)
    shutil.copytree(run.path, again.path)
    shutil.rmtree(again.model)
    shutil.rmtree(again.checkpoints / "checkpoint-2")
    again.update_state(state="interrupted")
    run_action(spec, again)
    assert again.state()["attempts"] == 2
    assert file_digest(again.model / "model.safetensors") == file_digest(run.model / "model.safetensors")
    _, keys = AutoModelForCausalLM.from_pretrained(run.checkpoints / "checkpoint-2", output_loading_info=True)
    assert not keys["missing_keys"] and not keys["unexpected_keys"]


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, ["temperature=0.9", "top_p=0.6"]),
        ({"length_penalty": 2.0}, ["length_penalty=2.0"]),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, []),
        ({"num_beams": 4, "length_penalty": 2.0}, []),
    ],
)
def test_what_transformers_refuses_to_write_is_left_out_of_a_generation_config(
    given, left_out, tmp_path, tokenizer
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "base"))
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(given))
    model.generation_config = GenerationConfig.from_pretrained(tmp_path / "base")
    assert set_generation_config(model, tokenizer) == left_out
    model.generation_config.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not left_out or not given.keys() & saved.keys()
    assert left_out or given.items() <= saved.items()


def adapter_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("method", "architecture", "problem"),
    [
        ("dpo", "LlamaForSequenceClassification", "a reward model without an LM head"),
        ("sft", "Qwen2ForRewardModel", "a reward model without an LM head"),
        ("reward", "BertForTokenClassification", "no method trains one"),
        ("reward", "LlamaForSequenceClassification", "with 3 labels"),
        ("reward", "LlamaForCausalLM", None),
        ("kto", "LlamaForCausalLM", None),
    ],
)
def test_a_base_of_another_kind_is_refused_by_its_config(method, architecture, problem, composed, tmp_path):
    config = {"architectures": [architecture], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = composed(["model=hub", f"model.path={tmp_path}", f"method={method}"])
    problems = list(weight_problems(spec))
    assert len(problems) == (problem is not None) and all(problem in sentence for sentence in problems)


@pytest.mark.parametrize(
    ("method", "config", "problem"),
    [
        ("dpo", {"task_type": "SEQ_CLS"}, "it is a reward model's (task_type SEQ_CLS)"),
        ("reward", {"task_type": "CAUSAL_LM"}, "it is a language model's (task_type CAUSAL_LM)"),
        ("reward", {"task_type": None}, "needs SEQ_CLS"),
        ("sft", {"task_type": "CAUSAL_LM", "peft_type": "IA3"}, "its peft_type is IA3"),
        ("sft", {"task_type": "CAUSAL_LM", "peft_type": "LORA"}, None),
        ("sft", {"task_type": None}, None),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_its_config(method, config, problem, composed, tmp_path):
    folder = adapter_folder(tmp_path / "adapter", **config)
    spec = composed(["model=tiny", "parallel=lora", f"method={method}", f"model.init_adapter={folder}"])
    problems = list(weight_problems(spec))
    assert len(problems) == (problem is not None) and all(problem in sentence for sentence in problems)


TINY_RUN = ["model=tiny", "method=sft", "parallel.device=cpu", "eval=none", "training.global_batch=2"]
TINY_RUN += ["training.max_steps=1"]


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ("[q_proj,c_attn]", "parallel.targets=c_attn: this model has no layer of that name; give some"),
        ("[input_layernorm]", "parallel.targets=[input_layernorm]: peft cannot adapt these"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_one_sentence(targets, sentence, composed, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        run_action(composed([*TINY_RUN, "parallel=lora", f"parallel.targets={targets}"]), run)
    assert str(caught.value).startswith(sentence)
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in str(caught.value)


def test_rows_that_are_too_long_are_replaced_by_the_next(composed, write_rows):
    """Every other prompt fills data.max_length: a run of 3 steps of 4 pairs has its 12 all the same, and as
    many measured ones; an epoch is of rows that can be used.
    """
    rows = [
        {"prompt": f"question {number} " * (1 if number % 2 else 200), "chosen": "yes", "rejected": "no"}
        for number in range(200)
    ]
    spec = composed(
        [
            *TINY_RUN,
            "data=local",
            f"data.path={write_rows(rows)}",
            "data.max_length=64",
            "training.max_steps=3",
            "training.global_batch=4",
            "method=dpo",
            "eval=heldout",
            "eval.rows=5",
            "eval.generations=0",
        ]
    )
    tokens = tokenized.tokenize(spec, data.load_rows(spec), locate_model(spec.model), Console(quiet=True))
    assert (len(tokens.train), len(tokens.heldout)) == (12, 5)
    assert 50 <= tokens.available <= 130
    assert len({str(row["prompt_ids"]) for row in tokens.train}) == 12


@pytest.mark.parametrize("token", ["<|tool|>", "[PAD]"])
def test_tokens_beyond_the_embedding(token, composed, tmp_path, capsys):
    """In the data they are refused before the model is loaded; one that only pads is replaced."""
    base = tmp_path / "base"
    shutil.copytree(locate_model(composed(TINY_RUN).model), base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": token})
    tokenizer.save_pretrained(base)
    template = "{% for m in messages %}<|tool|>{{m.content}}<|im_end|>\n{% endfor %}"
    (tmp_path / "tool.jinja").write_text(template + "{% if add_generation_prompt %}<|tool|>{% endif %}")
    spec = composed(
        [*TINY_RUN, "model=hub", f"model.path={base}", f"model.chat_template={tmp_path / 'tool.jinja'}"]
    )
    splits, console = data.load_rows(spec), Console()
    if token == "[PAD]":
        tokens = tokenized.tokenize(spec, splits, base, console)
        assert tokens.tokenizer.pad_token == tokens.tokenizer.eos_token
        assert "its padding token has no row in the embedding" in capsys.readouterr().out
        return
    with pytest.raises(
        UserError, match=r"ids up to 49152 and its embedding 49152 rows, and <\|tool\|> of the data"
    ):
        tokenized.tokenize(spec, splits, base, console)


def test_a_model_that_is_not_proved_is_kept(composed, tmp_path, monkeypatch):
    """The fresh process cannot start: the weights and figures are there, and the run has failed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys; 'from alignment_lab.checkpoints' in ''.join(sys.orig_argv) and os._exit(3)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(
        RunError, match=r"the model is trained, and is not proved to be saved right: .* are kept in"
    ):
        run_action(composed([*TINY_RUN, "parallel=lora"]), run)
    assert run.state()["state"] == "failed" and run.report()["steps"] == 1
    assert not run.model.exists()
    assert (run.unproved_model / "adapter_model.safetensors").is_file()


def test_what_cannot_be_saved_is_said_before_the_first_step(composed, tmp_path, monkeypatch):
    """A config that a library refuses to write: nothing is trained, and nothing is left behind."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("this cannot be written")

    monkeypatch.setattr(LlamaConfig, "save_pretrained", refuse)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(
        UserError, match="cannot be saved: ValueError: this cannot be written; nothing was trained"
    ):
        run_action(composed(TINY_RUN), run)
    assert run.metrics() == [] and not run.partial.exists()
