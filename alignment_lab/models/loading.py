"""Loads a model for evaluation or training: complete, without dropout, with packed attention where supported.

Weights are held in float32 and computed with in `model.dtype`: an update of 1e-6 is lost on a bfloat16
weight. Refuses to know where the folder came from (see `locate`) and what is trained on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Adapter, Experiment, Model, Sharding
from ..distributed import ranks
from ..runtime.errors import UserError
from ..runtime.library_internals import supports_attention_functions
from .adapters import add_adapter
from .locate import base_name
from .quantization import disable_bf16_rewrite, quantization_config

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


# attributes of modules, such as resid_pdrop; router_jitter_noise of PhiMoE also counts in evaluation
RANDOM_RATES = re.compile("drop|^(input_)?jitter_noise$|^moe_jitter_eps$")


def load_model(
    settings: Model,
    folder: Path,
    *,
    score_head: bool = False,
    dtype: torch.dtype | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode, without dropout: policy and reference must be the same function.

    Weights are float32 unless `dtype` is given. With `score_head` the model is a reward model: a head with
    one output instead of the LM head, a new one where the files have none. Raises UserError where any other
    weight is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    from . import packed_attention

    packed_attention.register()
    disable_progress_bar()  # transformers' own, for every shard that it reads or writes
    auto_class = AutoModelForSequenceClassification if score_head else AutoModelForCausalLM
    options: dict[str, Any] = {
        "trust_remote_code": settings.trust_remote_code,
        "dtype": dtype or torch.float32,
    }
    options |= {"num_labels": 1} if score_head else {}
    if quantization is not None:
        device = ranks.local_rank() if torch.cuda.is_available() else "cpu"
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    torch.manual_seed(0)  # a new head is the same for every training seed
    try:
        model = _load_complete(auto_class, folder, attn_implementation=settings.attention.name, **options)
        is_supported = supports_attention_functions(model)
    except KeyError:
        is_supported = False
    if not is_supported:  # a family with an attention of its own
        model = _load_complete(auto_class, folder, attn_implementation=None, **options)
    _disable_dropout(model)
    return model.eval()


def _load_complete(auto_class: Any, folder: Path, **options: Any) -> Any:
    """The model in this folder. Raises UserError where transformers cannot load it, and where a weight other
    than a new head is missing.

    A missing weight would be random, and transformers only prints a table.
    """
    try:
        model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: transformers cannot load this model ({reason}); give another.") from error
    required_prefix = model.base_model_prefix if "num_labels" in options else ""
    missing = sorted(name for name in info["missing_keys"] if name.startswith(required_prefix))
    if missing:
        weights = f"{len(missing)} weights of it are" if len(missing) > 1 else "a weight of it is"
        raise UserError(
            f"{folder}: {weights} not in its files and would be random, {missing[0]} for one; "
            "give a model that is complete."
        )
    return model


def _disable_dropout(model: PreTrainedModel) -> None:
    """Set every rate of randomness in training to 0: of dropout modules, and those that a module hands to
    F.dropout, to attention, to LayerDrop or to the jitter of a router. The config, which is saved, keeps
    them.
    """
    for module in model.modules():
        if "Dropout" in type(module).__name__ and isinstance(getattr(module, "p", None), float):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and RANDOM_RATES.search(name):
                setattr(module, name, 0.0)


def load_policy(spec: Experiment, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that is trained, with its adapter where it has one.

    Frozen weights are held in `dtype`, or quantized.

    It is moved to `device`, unless ZeRO-3 or FSDP will place its shards.
    """
    import torch

    parallel = spec.parallel
    has_adapter = parallel.adapter is not Adapter.none
    quantization = quantization_config(parallel, dtype)
    model = load_model(
        spec.model,
        folder,
        score_head=not spec.method.generates,
        dtype=dtype if has_adapter else torch.float32,
        quantization=quantization,
    )
    disable_bf16_rewrite(model)
    if quantization is not None and device.type == "cpu":
        _detach_from_file(model)
    policy = add_adapter(model, spec) if has_adapter else model
    if has_adapter:
        _name_base(policy, spec.model, folder)
    is_placed_elsewhere = quantization is not None or parallel.sharding in (Sharding.zero3, Sharding.fsdp)
    return policy if is_placed_elsewhere else policy.to(device)


def _name_base(policy: Any, settings: Model, folder: Path) -> None:
    """Name the base that is loaded: the config of an adapter that goes on names that of its first run."""
    for config in policy.peft_config.values():
        config.base_model_name_or_path, config.revision = base_name(settings, folder)


def _detach_from_file(model: PreTrainedModel) -> None:
    """Copy the weights that were not quantized out of the memory-mapped file.

    While one tensor still points into the mapping, all of its pages that were read stay resident.
    """
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.clone()
