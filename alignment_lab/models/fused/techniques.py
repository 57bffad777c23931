"""The table of fused techniques: which modules each one takes, what replaces them, how it is tried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import head, lora

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral", "SmolLM3", "Gemma")
BEFORE_LINEAR = ("input_layernorm", "post_attention_layernorm", "norm")  # norms that feed linear layers alone
ROWS = 40  # of a trial's random input: no multiple of a kernel's tile
Trial = tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Patch:
    """A module with its new forward, and a trial: the stock function, the fused one and their inputs.

    Modules with the same `kind` need one trial.
    """

    module: Any
    forward: Callable[..., Any]
    kind: tuple[Any, ...]
    trial: Callable[[], Trial]


@dataclass(frozen=True)
class Technique:
    """`patches` finds the modules of a model that it takes; `needs_triton`: it is no plain torch."""

    name: str
    patches: Callable[[Any], Iterator[Patch]]
    needs_triton: bool


def _is(module: Any, part: str) -> bool:
    """Whether a module is this part of a known family in transformers, and no class made from it."""
    kind = type(module)
    known = kind.__module__.startswith("transformers.models.")
    return known and kind.__name__ in {f"{family}{part}" for family in FAMILIES}


def _random(reference: Tensor, *shape: int, seed: int = 0) -> Tensor:
    """Normal numbers on the device of `reference`; the generators of the run are left as they are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(reference.device)


def _stock(module: Any) -> Callable[..., Any]:
    return lambda *inputs: type(module).forward(module, *inputs)


def _lora(model: Any) -> Iterator[Patch]:
    if not hasattr(model, "peft_config"):
        return
    for module in model.modules():
        if lora.is_plain_lora(module):
            weight = module.base_layer.weight

            def trial(module: Any = module, weight: Tensor = weight) -> Trial:
                fused = lambda x: lora.lora_forward(module, x)  # noqa: E731
                return _stock(module), fused, (_random(weight, ROWS, weight.shape[1]).to(weight.dtype),)

            yield Patch(module, lora.lora_forward, ("lora", *weight.shape), trial)


def _norm(model: Any) -> Iterator[Patch]:
    from .rms_norm import (
        MAX_WIDTH,
        norm_before_linear_forward,
        norm_forward,
        one_plus_norm_forward,
    )

    for name, module in model.named_modules():
        if not _is(module, "RMSNorm") or module.weight.numel() > MAX_WIDTH:
            continue
        forward = norm_before_linear_forward if name.split(".")[-1] in BEFORE_LINEAR else norm_forward
        if type(module).__name__ == "GemmaRMSNorm":
            forward = one_plus_norm_forward

        def trial(module: Any = module, forward: Callable[..., Any] = forward) -> Trial:
            weight = module.weight
            x = _random(weight, ROWS, weight.numel()).to(weight.dtype)
            return _stock(module), lambda x: forward(module, x), (x,)

        yield Patch(module, forward, (type(module), forward, *module.weight.shape), trial)


def _swiglu(model: Any) -> Iterator[Patch]:
    from .swiglu import SwiGlu, mlp_forward

    for module in model.modules():
        if not _is(module, "MLP") or not isinstance(module.act_fn, nn.SiLU | _transformers_silu()):
            continue

        def trial(module: Any = module) -> Trial:
            weight = next(module.gate_proj.parameters())
            gate, up = (_random(weight, ROWS, 1000, seed=seed).to(weight.dtype) for seed in (0, 1))
            return lambda gate, up: module.act_fn(gate) * up, SwiGlu.apply, (gate, up)

        yield Patch(module, mlp_forward, ("swiglu",), trial)


def _transformers_silu() -> type:
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])


def _rope(model: Any) -> Iterator[Patch]:
    from .rope import fused_rope, stock_rope, with_fused_rope

    forwards: dict[type, Callable[..., Any]] = {}
    for module in model.modules():
        stock = stock_rope(type(module)) if _is(module, "Attention") else None
        if stock is None:
            continue
        forward = forwards.setdefault(type(module), with_fused_rope(type(module)))

        def trial(module: Any = module, stock: Callable[..., Any] = stock) -> Trial:
            weight, width = next(module.q_proj.parameters()), module.head_dim
            q, k = (_random(weight, 1, heads, ROWS, width, seed=heads).to(weight.dtype) for heads in (4, 2))
            angles = _random(weight, 1, ROWS, width // 2, seed=3).repeat(1, 1, 2)
            cos, sin = angles.cos().to(weight.dtype), angles.sin().to(weight.dtype)
            fused = fused_rope(stock)
            return lambda q, k: stock(q, k, cos, sin), lambda q, k: fused(q, k, cos, sin), (q, k)

        yield Patch(module, forward, (type(module), module.head_dim), trial)


def _head(model: Any) -> Iterator[Patch]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = inner.get_output_embeddings() if _is(inner, "ForCausalLM") else None
    if module is None or not head.is_plain_head(module):
        return

    def trial() -> Trial:
        weight = module.weight
        x = _random(weight, ROWS, weight.shape[1]).to(weight.dtype)
        targets = torch.arange(ROWS, device=weight.device) * (weight.shape[0] // ROWS)

        def stock(x: Tensor) -> Tensor:
            logits = type(module).forward(module, x)
            precise = torch.promote_types(logits.dtype, torch.float32)
            return logits.to(precise).log_softmax(-1).gather(-1, targets[:, None])[:, 0]

        return stock, lambda x: head.linear_logprobs(x, weight, head.Request(targets)), (x,)

    yield Patch(module, head.head_forward, ("head",), trial)


TECHNIQUES = (
    Technique("LoRA", _lora, needs_triton=False),
    Technique("RMSNorm", _norm, needs_triton=True),
    Technique("SwiGLU", _swiglu, needs_triton=True),
    Technique("RoPE", _rope, needs_triton=True),
    Technique(head.NAME, _head, needs_triton=False),
)
