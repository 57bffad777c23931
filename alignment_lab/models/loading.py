"""From a `model` setting to weights and tokenizer. Finding them needs no torch; what cannot be had is one sentence.

Weights are held in float32 and computed with in `model.dtype`: an update of 1e-6 is lost on a bfloat16 weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Adapter, Experiment, Model, Sharding
from ..distributed import ranks
from ..runtime.errors import UserError
from ..runtime.library_internals import supports_attention_functions
from .adapters import add_adapter
from .quantization import disable_bf16_rewrite, quantization_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_model(
    model: Model,
    where: Path,
    *,
    score_head: bool = False,
    dtype: torch.dtype | None = None,
    quantization: Any = None,
) -> PreTrainedModel:
    """The model in evaluation mode, without dropout: policy and reference must be the same function. Weights are float32 unless said.

    With `score_head` it has a head of one output instead of the LM head, a new one where the files have none: a reward model.
    `quantization` is a BitsAndBytesConfig. Raises UserError where any other weight is not in the files.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    from . import packed_attention as packed

    packed.register()
    disable_progress_bar()  # transformers' own, for every shard that it reads or writes
    kind = AutoModelForSequenceClassification if score_head else AutoModelForCausalLM
    attention: dict[str, Any] = {"attn_implementation": model.attention.name}
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code, "dtype": dtype or torch.float32}
    options |= {"num_labels": 1} if score_head else {}
    if quantization is not None:
        here = ranks.local_rank() if torch.cuda.is_available() else "cpu"
        options |= {"quantization_config": quantization, "device_map": {"": here}}
    torch.manual_seed(0)  # a new head is the same for every seed of the training
    try:
        found = _load_complete(kind, where, **attention, **options)
        takes = supports_attention_functions(found)
    except KeyError:
        takes = False
    if not takes:  # a family whose attention is its own
        found = _load_complete(kind, where, attn_implementation=None, **options)
    for module in found.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return found.eval()


def _load_complete(kind: Any, where: Path, **options: Any) -> Any:
    """The model in this directory. What it lacks, its own head for scores aside, would be random; transformers only prints a table."""
    found, told = kind.from_pretrained(where, output_loading_info=True, **options)
    inner = found.base_model_prefix if "num_labels" in options else ""
    lacks = sorted(name for name in told["missing_keys"] if name.startswith(inner))
    if lacks:
        several = f"{len(lacks)} weights of it are" if len(lacks) > 1 else "a weight of it is"
        raise UserError(
            f"{where}: {several} not in its files and would be random, {lacks[0]} for one; give a model that is whole."
        )
    return found


def load_policy(spec: Experiment, where: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that is trained, with its adapter where it has one. What is frozen is held in `dtype`, or quantized.

    It lies on `device`, unless processes will cut it: then whoever cuts it places it.
    """
    import torch

    dials = spec.parallel
    frozen = dials.adapter is not Adapter.none
    quantization = quantization_config(dials, dtype)
    score_head = not spec.method.generates
    model = load_model(
        spec.model, where, score_head=score_head, dtype=dtype if frozen else torch.float32, quantization=quantization
    )
    disable_bf16_rewrite(model)
    if quantization is not None and device.type == "cpu":
        _copy_out_of_file(model)
    policy = add_adapter(model, spec) if frozen else model
    return (
        policy
        if quantization is not None or dials.sharding in (Sharding.zero3, Sharding.fsdp)
        else policy.to(device)
    )


def _copy_out_of_file(model: Any) -> None:
    """Copy what was not quantized out of the file. While one tensor lies in its mapping, all of its pages that were read stay resident."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.clone()
