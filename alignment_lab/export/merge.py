"""From what a run saved to one plain model, and how far that is from what was trained.

An adapter that was trained on quantized weights belongs to those: it corrects their rounding too. It is merged into the dequantized
weights; merged into the original ones it would give another model.
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

PROMPTS, LENGTH = 4, 128  # real prompts that both models are asked, and the tokens of each that are looked at


@dataclass(frozen=True)
class Drift:
    """How far two models' numbers, logits or scores, are apart on the same inputs."""

    on: str  # which inputs
    largest: float
    mean: float
    same_token: float | None  # the share of places with the same likeliest token; None of a reward model

    def __str__(self) -> str:
        what = "scores" if self.same_token is None else "logits"
        same = (
            ""
            if self.same_token is None
            else f"; the likeliest token is the same at {100 * self.same_token:.1f}% of places"
        )
        return f"{self.on}: {what} apart by {self.mean:.2g} on average, {self.largest:.2g} at most{same}"


def as_trained(
    spec: Mapping[str, Any], report: Mapping[str, Any], *, adapter: bool, base: Path | None, device: str
) -> verify.LoadOptions:
    """How to load what a run saved: full weights as they lie, an adapter on its base as the run held that."""
    model, dials = spec["model"], spec.get("parallel") or {}
    trust = bool(model.get("trust_remote_code"))
    if not adapter:
        return verify.LoadOptions(dtype="auto", device=device, trust_remote_code=trust)
    asked = model.get("dtype", "auto")
    dtype = report.get("dtype") or (asked if asked != "auto" else "float32")
    quantization = Quantization[dials.get("quantization") or "none"]
    return verify.LoadOptions(
        base=base,
        quantization=quantization,
        compute=dtype,
        dtype=dtype,
        device=device,
        trust_remote_code=trust,
    )


def exported(
    folder: Path, how: verify.LoadOptions, dtype: str | None, prompts: Sequence[Sequence[int]]
) -> tuple[Any, list[Drift]]:
    """The model to give away, and its drift from the trained one: merged in float32, then cast. Never two of them in memory at once."""
    adapter = (folder / "adapter_config.json").exists()
    model = verify.load_saved(folder, how)
    before = heard(model, prompts)
    if adapter:
        del model
        model = merged(folder, how)
    if dtype:
        cast(model, dtype)
    return model, drift(before, heard(model, prompts)) if adapter or dtype else []


def merged(folder: Path, how: verify.LoadOptions) -> Any:
    """The adapter in `folder` merged into the weights that it was trained on, in float32."""
    base = load_base(folder, how)
    if how.quantization is not Quantization.none:
        base = dequantized(base)
    model = load_adapter(base.float(), folder)
    try:
        return model.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:  # a value is not finite
        raise UserError(
            f"{folder}: this adapter cannot be merged ({error}); train it again with a lower training.learning_rate."
        ) from None


def dequantized(model: Any) -> Any:
    """The same model with the numbers that its quantized weights stand for, in plain layers."""
    import torch

    plain = model.dequantize(dtype=torch.float32)
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # by which peft would take it for a quantized one
        plain.__dict__.pop(mark, None)
    return plain


def cast(model: Any, dtype: str) -> None:
    """Weights in `dtype`, in place. What is computed and not saved, as the angles of positions are, stays exact: so it is after loading."""
    import torch

    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))


def heard(model: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """What a model says of the probe and, position by position, of the first real prompts."""
    import torch

    device = next(model.parameters()).device
    said = [verify.probe_outputs(model)]
    with plain_forward_mode(model):
        for ids in prompts[:PROMPTS]:
            found = model(input_ids=torch.tensor([list(ids[:LENGTH])], device=device), use_cache=False).logits
            said.append(found[0].float().cpu())
    return said


def drift(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Drift]:
    """How far apart two models are in what `heard` gives: on the probe, and on all real prompts together."""
    count = len(one) - 1
    groups = {"probe": slice(0, 1), f"{count} real prompt{'s' if count > 1 else ''}": slice(1, None)}
    return [_apart(name, one[which], other[which]) for name, which in groups.items() if one[which]]


def _apart(on: str, one: Sequence[Tensor], other: Sequence[Tensor]) -> Drift:
    import torch

    pairs = list(zip(one, other, strict=True))
    gaps = torch.cat(
        [torch.where(first == second, 0.0, (first - second).abs()).flatten() for first, second in pairs]
    )
    same = [(first.argmax(-1) == second.argmax(-1)).float() for first, second in pairs if first.dim() == 2]
    return Drift(on, float(gaps.max()), float(gaps.mean()), float(torch.cat(same).mean()) if same else None)
