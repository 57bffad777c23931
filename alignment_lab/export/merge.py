"""Makes one plain model of what a run saved, and measures how its outputs differ from the trained model's.

An adapter that was trained on quantized weights also corrects their rounding. It is merged into the
dequantized weights; merged into the original ones it would give another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import verify
from ..checkpoints.verify.plain_loading import load_adapter, load_base
from ..checkpoints.verify.probe import plain_forward_mode
from ..config import Quantization
from ..runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

MAX_PROMPTS, MAX_PROMPT_TOKENS = 4, 128  # real prompts on which both models are compared


@dataclass(frozen=True)
class OutputDifference:
    """How far the outputs of two models, logits or scores, differ on the same inputs."""

    on: str  # which inputs
    largest: float
    mean: float
    same_token: float | None  # share of positions with the same most likely token; None for a reward model

    def __str__(self) -> str:
        outputs, same = "scores", ""
        if self.same_token is not None:
            outputs = "logits"
            same = f"; the most likely token is the same at {100 * self.same_token:.1f}% of positions"
        return f"{self.on}: {outputs} differ by {self.mean:.2g} on average, {self.largest:.2g} at most{same}"


def load_options(
    spec: Mapping[str, Any], report: Mapping[str, Any], *, has_adapter: bool, base: Path | None, device: str
) -> verify.LoadOptions:
    """How to load what a run saved: full weights as they are, an adapter on its base as the run held it."""
    model, parallel = spec["model"], spec.get("parallel") or {}
    trust_remote_code = bool(model.get("trust_remote_code"))
    if not has_adapter:
        return verify.LoadOptions(dtype="auto", device=device, trust_remote_code=trust_remote_code)
    configured = model.get("dtype", "auto")
    dtype = report.get("dtype") or (configured if configured != "auto" else "float32")
    return verify.LoadOptions(
        base=base,
        quantization=Quantization[parallel.get("quantization") or "none"],
        compute=dtype,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )


def load_merged(
    folder: Path, options: verify.LoadOptions, dtype: str | None, prompts: Sequence[Sequence[int]]
) -> tuple[PreTrainedModel, list[OutputDifference]]:
    """The model to export, and how it differs from the trained one: merged in float32, then cast.

    Never holds two models in memory.
    """
    has_adapter = (folder / "adapter_config.json").exists()
    model = verify.load_saved(folder, options)
    trained_outputs = model_outputs(model, prompts)
    if has_adapter:
        del model
        model = merge_adapter(folder, options)
    if dtype:
        cast_weights(model, dtype)
    unchanged = not (has_adapter or dtype)
    return model, [] if unchanged else compare_outputs(trained_outputs, model_outputs(model, prompts))


def merge_adapter(folder: Path, options: verify.LoadOptions) -> PreTrainedModel:
    """The adapter in `folder` merged into the weights that it was trained on, in float32."""
    base = load_base(folder, options)
    if options.quantization is not Quantization.none:
        base = dequantize(base)
    adapted = load_adapter(base.float(), folder)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:  # NaN or infinity
        raise UserError(
            f"{folder}: this adapter cannot be merged ({error}); "
            "train it again with a lower training.learning_rate."
        ) from None
    return merged


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with the values of its quantized weights in plain layers."""
    import torch

    plain: PreTrainedModel = model.dequantize(dtype=torch.float32)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # by which peft recognizes a quantized model
        plain.__dict__.pop(flag, None)
    return plain


def cast_weights(model: PreTrainedModel, dtype: str) -> None:
    """Cast the weights in place.

    Buffers that are computed and not saved, such as rotary angles, stay in float32, as they are after
    loading.
    """
    import torch

    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))


def model_outputs(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The outputs for the fixed probe, and the logits [T, V] for each of the first real prompts."""
    import torch

    device = next(model.parameters()).device
    outputs = [verify.probe_outputs(model)]
    with plain_forward_mode(model):
        for ids in prompts[:MAX_PROMPTS]:
            input_ids = torch.tensor([list(ids[:MAX_PROMPT_TOKENS])], device=device)
            outputs.append(model(input_ids=input_ids, use_cache=False).logits[0].float().cpu())
    return outputs


def compare_outputs(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[OutputDifference]:
    """How two results of `model_outputs` differ: on the probe, and on all real prompts together."""
    differences = [_difference("probe", first[:1], second[:1])]
    count = len(first) - 1
    if count:
        name = f"{count} real prompt{'s' if count > 1 else ''}"
        differences.append(_difference(name, first[1:], second[1:]))
    return differences


def _difference(inputs: str, first: Sequence[Tensor], second: Sequence[Tensor]) -> OutputDifference:
    import torch

    pairs = list(zip(first, second, strict=True))
    # Equal values first: the difference of two infinities is NaN.
    gaps = torch.cat([torch.where(a == b, 0.0, (a - b).abs()).flatten() for a, b in pairs])
    same_token = [(a.argmax(-1) == b.argmax(-1)).float() for a, b in pairs if a.dim() == 2]
    share = float(torch.cat(same_token).mean()) if same_token else None
    return OutputDifference(inputs, float(gaps.max()), float(gaps.mean()), share)
