"""LoRA adapters by peft: which layers get one, what is trained, and how a trained one is resumed.

Knows peft and the `parallel` settings. Refuses to know where the base weights come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Adapter, Experiment, Parallel

if TYPE_CHECKING:
    from peft import LoraConfig


def add_adapter(model: Any, spec: Experiment) -> Any:
    """The model with the adapter of `model.init_adapter`, or with a new one drawn by the training seed."""
    import torch
    from peft import PeftModel, get_peft_model

    for weight in model.parameters():
        weight.requires_grad_(False)
    torch.manual_seed(spec.training.seed)
    if spec.model.init_adapter:
        folder = Path(spec.model.init_adapter).expanduser()
        return PeftModel.from_pretrained(model, folder, is_trainable=True).eval()
    policy = get_peft_model(model, lora_config(spec.parallel, score_head=not spec.method.generates)).eval()
    for weight in policy.parameters():
        if weight.requires_grad:
            # a reward model's head is a copy in the base's dtype, which is too coarse to be trained
            weight.data = weight.data.float()
    return policy


def lora_config(parallel: Parallel, *, score_head: bool) -> LoraConfig:
    """peft's LoraConfig: on every linear layer but the head, unless `parallel.targets` names others.

    The new head of a reward model (`score_head`) is trained in full.
    """
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
