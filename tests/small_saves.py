"""Tiny models and adapters as a run leaves them on disk, with weights large enough for every mistake to show."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from alignment_lab import saved
from alignment_lab.saved.loading import load_base

ADAPTERS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
SPREAD = 0.1  # of random weights; Llama's own 0.02 would leave logits that barely differ
quantised = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install -e .[quantisation]")


def tiny(folder: Path, *, scores: bool = False, tied: bool = True) -> Path:
    """A Llama of two layers and 1000 tokens in `folder`."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = LlamaConfig(num_hidden_layers=2, vocab_size=1000, initializer_range=SPREAD, tie_word_embeddings=tied, **shape)
    config.pad_token_id, config.num_labels = 2, 1 if scores else 2
    kind = LlamaForSequenceClassification if scores else LlamaForCausalLM
    kind(config).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, kind: str = "lora", how: saved.Loading | None = None, *, scores: bool = False) -> Any:
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
    made = get_peft_model(load_base(folder, how or saved.Loading()), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.data = weight.float()  # what is trained is held in float32, whatever lies under it
                weight += SPREAD * torch.randn(weight.shape, generator=generator)
    made.save_pretrained(folder)
    return made.eval()
