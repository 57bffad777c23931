"""Adapters of peft: which layers get one, what is trained of it, and the one that a run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import Adapter, Experiment, Parallel


def add_adapter(model: Any, spec: Experiment) -> Any:
    """The model under a fresh adapter, drawn by the training's seed, or under the one that the experiment goes on from."""
    import torch
    from peft import PeftModel, get_peft_model

    for weight in model.parameters():
        weight.requires_grad_(False)
    torch.manual_seed(spec.training.seed)
    if spec.model.init_adapter:
        return PeftModel.from_pretrained(
            model, Path(spec.model.init_adapter).expanduser(), is_trainable=True
        ).eval()
    policy = get_peft_model(model, lora_config(spec.parallel, score_head=not spec.method.generates)).eval()
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data = (
                weight.data.float()
            )  # a reward model's head is a copy in the base's type: too coarse to be trained
    return policy


def lora_config(parallel: Parallel, *, score_head: bool) -> Any:
    """peft's LoraConfig; every linear layer but the head where no layers are named. A reward model's new head is trained whole."""
    from peft import LoraConfig

    return LoraConfig(
        r=parallel.rank,
        lora_alpha=parallel.alpha or 2 * parallel.rank,
        lora_dropout=0.0,
        target_modules=list(parallel.targets) if parallel.targets else "all-linear",
        modules_to_save=["score"] if score_head else None,
        use_dora=parallel.adapter is Adapter.dora,
        use_rslora=parallel.adapter is Adapter.rslora,
        task_type="SEQ_CLS" if score_head else "CAUSAL_LM",
    )
