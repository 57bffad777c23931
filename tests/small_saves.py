"""Tiny models and adapters as a run saves them, with weights so large that every mistake shows."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from alignment_lab.checkpoints import verify
from alignment_lab.checkpoints.verify import comparison as process
from alignment_lab.checkpoints.verify import fresh_process
from alignment_lab.checkpoints.verify.plain_loading import load_base
from alignment_lab.config import Experiment, to_yaml
from alignment_lab.runtime.run_directory import RunDirectory

ADAPTERS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
# adapters that others train, and that a run may go on from
FOREIGN_ADAPTERS: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "new tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "biases": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
}
SPREAD = 0.1  # of random weights; Llama's own 0.02 would leave logits that barely differ
quantized = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install -e .[quantization]"
)


def tiny_model(folder: Path, *, score_head: bool = False, tied: bool = True) -> Path:
    """A Llama of two layers and 1000 tokens in `folder`."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config = LlamaConfig(
        num_hidden_layers=2, vocab_size=1000, initializer_range=SPREAD, tie_word_embeddings=tied, **shape
    )
    config.pad_token_id, config.num_labels = 2, 1 if score_head else 2
    model_class = LlamaForSequenceClassification if score_head else LlamaForCausalLM
    model_class(config).save_pretrained(folder)
    return folder


def trained_adapter(
    base: Path,
    folder: Path,
    adapter_kind: str = "lora",
    options: verify.LoadOptions | None = None,
    *,
    score_head: bool = False,
) -> Any:
    """Save a trained adapter of this kind on `base` in `folder`; returns its model."""
    settings: dict[str, Any] = {
        "target_modules": "all-linear",
        "modules_to_save": ["score"] if score_head else None,
        **(ADAPTERS | FOREIGN_ADAPTERS)[adapter_kind],
    }
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        task_type="SEQ_CLS" if score_head else "CAUSAL_LM",
        base_model_name_or_path=str(base),
        **settings,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)  # load_base reads the base's folder from it
    model = get_peft_model(load_base(folder, options or verify.LoadOptions()), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.float()  # trained weights are float32, whatever the base's dtype
                weight += SPREAD * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the fresh process's code in this process, for tests about a folder and not about the process."""
    verify_in_this_process(monkeypatch)


def verify_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """The same, for a fixture that lives longer than a test."""

    start = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if fresh_process.START not in command:
            return start(command, **options)
        process.main(*command[5:])
        return subprocess.CompletedProcess(command, 0, "", "")

    patch.setattr(fresh_process.subprocess, "run", run)


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def finished_run(
    folder: Path, spec: Experiment, model_folder: Path, tokenizer: Any, **report: Any
) -> RunDirectory:
    """The directory of a finished run of this experiment with the model in `model_folder` and two answered
    prompts.
    """
    run = RunDirectory(folder)
    run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
    shutil.copytree(model_folder, run.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # as load_tokenizer does
    tokenizer.save_pretrained(run.model)
    prompts = ["What is it?", "Hello"] if spec.method.generates else []
    run.write_samples(
        [{"prompt": [{"role": "user", "content": prompt}], "before": "a", "after": "b"} for prompt in prompts]
    )
    before, after = ({"value": value, "ci95": [value - 0.1, value + 0.1], "n": 64} for value in (0.5, 0.75))
    metrics = {
        "eval_rewards/accuracies": {"before": before, "after": after},
        "eval_loss": {"before": before, "after": None},
    }
    rows = {"train": 512, "available": 1024, "eval": 64, "dropped": {}, "truncated": 0}
    run.report_file.write_text(
        json.dumps({"steps": 20, "tokens": 12345, "rows": rows, "metrics": metrics, **report})
    )
    command = ["/usr/bin/python3", "train.py", "method=dpo", "data.path=my rows.jsonl"]
    run.provenance_file.write_text(
        json.dumps({"command": command, "git": {"commit": "0" * 40, "dirty": True, "diff": ""}})
    )
    run.finish()
    return run
