"""Tiny models and adapters as a run leaves them on disk, with weights large enough for every mistake to show."""

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
from alignment_lab.checkpoints.verify import __main__ as process
from alignment_lab.checkpoints.verify import fresh_process
from alignment_lab.checkpoints.verify.plain_loading import load_base
from alignment_lab.config import Experiment, to_yaml
from alignment_lab.runtime.run_directory import RunDirectory

ADAPTERS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
SPREAD = 0.1  # of random weights; Llama's own 0.02 would leave logits that barely differ
quantized = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install -e .[quantization]"
)


def tiny(folder: Path, *, scores: bool = False, tied: bool = True) -> Path:
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
    config.pad_token_id, config.num_labels = 2, 1 if scores else 2
    kind = LlamaForSequenceClassification if scores else LlamaForCausalLM
    kind(config).save_pretrained(folder)
    return folder


def adapter(
    base: Path, folder: Path, kind: str = "lora", how: verify.LoadOptions | None = None, *, scores: bool = False
) -> Any:
    """A trained adapter of this kind on `base`, saved in `folder`; the model that it was saved from."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        modules_to_save=["score"] if scores else None,
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        base_model_name_or_path=str(base),
        **ADAPTERS[kind],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)  # by which load_base knows what lies under it
    made = get_peft_model(load_base(folder, how or verify.LoadOptions()), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.data = weight.float()  # what is trained is held in float32, whatever lies under it
                weight += SPREAD * torch.randn(weight.shape, generator=generator)
    made.save_pretrained(folder)
    return made.eval()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process is this one: where the claim is about a folder, and not about the process."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        process.main(*command[3:])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fresh_process.subprocess, "run", run)


def digests(folder: Path) -> dict[str, str]:
    """The content of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def finished(folder: Path, spec: Experiment, model: Path, tokenizer: Any, **report: Any) -> RunDirectory:
    """A run directory as it is left by a run of this experiment that made the model in `model`; two prompts were answered."""
    run = RunDirectory(folder)
    run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
    shutil.copytree(model, run.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # as model.load_tokenizer has it
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
