"""LoRA adapters by peft: which layers get one, what is trained, and how a trained one is resumed.

Knows peft and the `parallel` settings. Refuses to know where the base weights come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Adapter, Experiment, Parallel
from ..runtime.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig

MAX_REASON = 300  # characters of peft's message


def add_adapter(model: Any, spec: Experiment) -> Any:
    """The model with the adapter of `model.init_adapter`, or with a new one drawn by the training seed.

    Raises UserError where it does not fit the model.
    """
    import torch
    from peft import get_peft_model

    for weight in model.parameters():
        weight.requires_grad_(False)
    torch.manual_seed(spec.training.seed)
    if spec.model.init_adapter:
        return _load_trained(model, spec.model.init_adapter)
    if spec.parallel.targets:
        _require_targets(model, spec.parallel.targets)
    targets = f"[{','.join(spec.parallel.targets)}]" if spec.parallel.targets else "null"
    with _misfit_as_sentence(
        f"parallel.targets={targets}: peft cannot adapt these", _linear_layers_of(model)
    ):
        policy = get_peft_model(
            model, lora_config(spec.parallel, score_head=not spec.method.generates)
        ).eval()
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


def _load_trained(model: Any, init_adapter: str) -> Any:
    """The model with a trained adapter, whole and nothing else: peft skips what it does not find or know."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    folder = Path(init_adapter).expanduser()
    remedy = "give the model that it was trained on, or another adapter"
    with _misfit_as_sentence(f"model.init_adapter={init_adapter}: it does not fit this model", remedy):
        policy = PeftModel.from_pretrained(model, folder, is_trainable=True).eval()
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
    _disable_dropout(policy)
    expected = get_peft_model_state_dict(policy, save_embedding_layers=False).keys()
    if missing := sorted(expected - saved):
        raise UserError(
            f"model.init_adapter={init_adapter}: lacks {missing[0]}, which would be random; save it again."
        )
    if foreign := sorted(saved - expected):
        raise UserError(
            f"model.init_adapter={init_adapter}: holds {foreign[0]}, which is no part of the adapter; "
            "merge it into its base first, and give that as model.path."
        )
    return policy


def _disable_dropout(policy: Any) -> None:
    """Switch off the dropout of a trained adapter, in its config too, as that of the model is.

    With it, the first step would not see the policy that its reference was computed with.
    """
    import torch

    for settings in policy.peft_config.values():
        settings.lora_dropout = 0.0
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _require_targets(model: Any, targets: list[str]) -> None:
    """Raise UserError where a target names no module of the model: peft skips it where another one does."""
    names = [name for name, _ in model.named_modules()]
    absent = [target for target in targets if not any(_is_named(name, target) for name in names)]
    if absent:
        raise UserError(
            f"parallel.targets={absent[0]}: this model has no layer of that name; "
            f"{_linear_layers_of(model)}, or leave parallel.targets null for all of them."
        )


def _is_named(name: str, target: str) -> bool:
    """As peft matches a list of targets."""
    return name == target or name.endswith(f".{target}")


def _linear_layers_of(model: Any) -> str:
    """The names of the model's linear layers, as a remedy."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]
    return f"give some of its linear layers: {', '.join(dict.fromkeys(linear))}"


@contextmanager
def _misfit_as_sentence(problem: str, remedy: str) -> Iterator[None]:
    """Turn what peft raises where an adapter does not fit its model into one sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{problem} ({reason}); {remedy}.") from error
