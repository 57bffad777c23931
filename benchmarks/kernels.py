"""Each fused operation beside the stock one: milliseconds forward and backward, memory, and error.

python -m benchmarks.kernels [--device cuda] [--shape 1.5b,8b] [--tokens 8192]

Inputs are random, of the sizes that one pass over `tokens` tokens has, in bfloat16 under autocast as training
runs it. Errors are those of outputs and gradients against the stock operation in float32 on the same numbers,
relative to the largest of each. `--device cpu --shape tiny` tries the harness.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from alignment_lab.models.fused import head, lora
from alignment_lab.models.fused.available import has_triton
from alignment_lab.models.fused.choice import use_kernels
from alignment_lab.models.fused.patch import techniques_of

from .shapes import SHAPES, Shape, adapter, build

WARM, TIMED = 3, 20
RANK = 16
Function = Callable[[], tuple[Tensor, ...]]


@dataclass
class Side:
    """One way to compute an operation: `run` gives its outputs; `leaves` get gradients."""

    run: Callable[[], Any]
    leaves: list[Tensor]
    autocast: bool = True


@dataclass
class Case:
    """An operation: `make(kind)` builds its stock, fused or exact side on the same random numbers."""

    name: str
    make: Callable[[str], Side]


class Numbers:
    """Random tensors, the same ones for every side: rounded to bfloat16, then in the type that is asked."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype, scale: float = 1.0, leaf: bool = True) -> Tensor:
        """A tensor of this shape; a leaf gets a gradient."""
        values = torch.randn(*shape, generator=self.generator, device=self.device).mul_(scale)
        return values.bfloat16().to(dtype).requires_grad_(leaf)


def cases(shape: Shape, tokens: int, device: torch.device) -> Iterator[Case]:
    """What one layer and the head of a model of this shape are made of."""
    sizes = {
        "q": (shape.hidden, shape.heads * shape.head_dim),
        "up": (shape.hidden, shape.intermediate),
        "down": (shape.intermediate, shape.hidden),
    }
    for name, (inputs, outputs) in sizes.items():
        yield Case(f"LoRA linear {name} {inputs}x{outputs}", _lora(inputs, outputs, tokens, device))
    scored = max(1, tokens * 7 // 10)
    yield Case(f"head, frozen, {scored} tokens", _head(shape, scored, device, trained=False))
    yield Case(f"head, trained, {scored} tokens", _head(shape, scored, device, trained=True))
    if has_triton(device):
        yield Case("RMSNorm, frozen, bfloat16", _norm(shape, tokens, device, trained=False))
        yield Case("RMSNorm, trained, float32 in, bfloat16 out", _norm(shape, tokens, device, trained=True))
        yield Case("SwiGLU", _swiglu(shape, tokens, device))
        yield Case("RoPE", _rope(shape, tokens, device))
    yield Case("model of 2 layers, LoRA", _model(shape, tokens, device, with_lora=True))
    yield Case("model of 2 layers, full", _model(shape, tokens, device, with_lora=False))


def _held(kind: str) -> torch.dtype:
    return torch.float32 if kind == "exact" else torch.bfloat16


def _lora(inputs: int, outputs: int, tokens: int, device: torch.device) -> Callable[[str], Side]:
    def make(kind: str) -> Side:
        from peft import LoraConfig, inject_adapter_in_model

        numbers, dtype = Numbers(device), _held(kind)
        with torch.device(device):
            stack = nn.Sequential(nn.Linear(inputs, outputs, bias=False, dtype=dtype))
        layer = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"]), stack)[
            0
        ]
        a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
        for weight in (layer.base_layer.weight, a, b):
            weight.data = numbers(*weight.shape, dtype=weight.dtype, scale=inputs**-0.5, leaf=False)
        a.data, b.data = a.data.float(), b.data.float()
        layer.base_layer.weight.requires_grad_(False)
        x = numbers(1, tokens, inputs, dtype=dtype)
        run = (lambda: lora.lora_forward(layer, x)) if kind == "fused" else (lambda: layer(x))
        return Side(run, [x, a, b], kind != "exact")

    return make


def _head(shape: Shape, scored: int, device: torch.device, *, trained: bool) -> Callable[[str], Side]:
    def make(kind: str) -> Side:
        from alignment_lab.engine.logprobs import _TargetLogSoftmax

        numbers = Numbers(device)
        x = numbers(scored, shape.hidden, dtype=_held(kind))
        weight_dtype = torch.float32 if trained else _held(kind)
        weight = numbers(
            shape.vocabulary, shape.hidden, dtype=weight_dtype, scale=shape.hidden**-0.5, leaf=trained
        )
        targets = torch.arange(scored, device=device) * 7919 % shape.vocabulary

        def stock() -> Tensor:
            logits = nn.functional.linear(x, weight).float()  # accelerate gives the engine float32
            logps: Tensor = _TargetLogSoftmax.apply(logits, targets, False, False)[0]
            return logps

        fused = lambda: head.linear_logprobs(x, weight, head.Request(targets))  # noqa: E731
        leaves = [x, weight] if trained else [x]
        return Side(fused if kind == "fused" else stock, leaves, kind != "exact")

    return make


def _norm(shape: Shape, tokens: int, device: torch.device, *, trained: bool) -> Callable[[str], Side]:
    def make(kind: str) -> Side:
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        from alignment_lab.models.fused.rms_norm import norm_before_linear_forward

        numbers = Numbers(device)
        dtype = torch.float32 if trained else _held(kind)
        with torch.device(device):
            module = LlamaRMSNorm(shape.hidden, 1e-5).to(dtype)
        module.weight.data = numbers(shape.hidden, dtype=dtype, leaf=False)
        module.weight.requires_grad_(trained)
        x = numbers(1, tokens, shape.hidden, dtype=dtype)
        out = torch.float32 if kind == "exact" else torch.bfloat16
        fused = lambda: norm_before_linear_forward(module, x)  # noqa: E731
        run = fused if kind == "fused" else (lambda: module(x).to(out))
        return Side(run, [x, module.weight] if trained else [x], kind != "exact")

    return make


def _swiglu(shape: Shape, tokens: int, device: torch.device) -> Callable[[str], Side]:
    def make(kind: str) -> Side:
        from alignment_lab.models.fused.swiglu import SwiGlu

        numbers = Numbers(device)
        gate, up = (numbers(1, tokens, shape.intermediate, dtype=_held(kind)) for _ in range(2))
        stock = lambda: nn.functional.silu(gate) * up  # noqa: E731
        return Side(
            (lambda: SwiGlu.apply(gate, up)) if kind == "fused" else stock, [gate, up], kind != "exact"
        )

    return make


def _rope(shape: Shape, tokens: int, device: torch.device) -> Callable[[str], Side]:
    def make(kind: str) -> Side:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        from alignment_lab.models.fused.rope import fused_rope

        numbers, dtype = Numbers(device), _held(kind)
        q, k = (
            numbers(1, tokens, heads, shape.head_dim, dtype=dtype) for heads in (shape.heads, shape.kv_heads)
        )
        angles = numbers(1, tokens, shape.head_dim // 2, dtype=torch.float32, leaf=False).repeat(1, 1, 2)
        cos, sin = angles.cos().bfloat16().to(dtype), angles.sin().bfloat16().to(dtype)
        rotate = fused_rope(apply_rotary_pos_emb) if kind == "fused" else apply_rotary_pos_emb
        return Side(lambda: rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin), [q, k], kind != "exact")

    return make


def _model(shape: Shape, tokens: int, device: torch.device, *, with_lora: bool) -> Callable[[str], Side]:
    """Two layers with their head over packed rows of 512 tokens, as the engine calls them; SDPA per row."""

    def make(kind: str) -> Side:
        SHAPES["shape-kernels"] = replace(shape, layers=2)
        dtype = _held(kind) if with_lora else torch.float32
        model = build("shape-kernels", str(device), torch.bfloat16).to(dtype)
        if with_lora:
            from peft import get_peft_model

            torch.manual_seed(1)
            model = get_peft_model(model, adapter(RANK))
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.data = torch.full_like(weight, 0.01, dtype=torch.float32)
        if kind == "fused":
            problems = use_kernels(model, device, torch.bfloat16)
            notes[f"{'LoRA' if with_lora else 'full'} model"] = [*techniques_of(model), *problems]
        generator = torch.Generator().manual_seed(0)
        width = min(512, tokens)
        ids = torch.randint(shape.vocabulary, (tokens // width, width), generator=generator).to(device)
        flat = ids.flatten().roll(-1)

        def run() -> Tensor:
            from alignment_lab.engine.logprobs import _TargetLogSoftmax

            if found := head.scoring_head(model):
                request = head.Request(flat)
                return head.score_by_head(
                    found, request, lambda: model(input_ids=ids, use_cache=False).logits
                )
            logits = model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
            logps: Tensor = _TargetLogSoftmax.apply(logits, flat, False, False)[0]
            return logps

        leaves = [weight for weight in model.parameters() if weight.requires_grad]
        return Side(run, leaves, kind != "exact")

    return make


notes: dict[str, list[str]] = {}


def _pass(side: Side, device: torch.device) -> list[Tensor]:
    """Outputs and gradients of one pass, forward and backward."""
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if side.autocast else nullcontext()
    with autocast:
        outputs = side.run()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator(device).manual_seed(5)
    upstream = [
        torch.randn(out.shape, generator=generator, device=device).bfloat16().to(out.dtype) for out in outputs
    ]
    return [*outputs, *torch.autograd.grad(outputs, side.leaves, upstream)]


def _milliseconds(side: Side, device: torch.device, warm: int, timed: int) -> float:
    times = []
    for number in range(warm + timed):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            _pass(side, device)
            end.record()
            torch.cuda.synchronize()
            elapsed = start.elapsed_time(end)
        else:
            began = time.perf_counter()
            _pass(side, device)
            elapsed = (time.perf_counter() - began) * 1e3
        if number >= warm:
            times.append(elapsed)
    return round(median(times), 3)


def _error(tensors: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference of any output or gradient, relative to its largest number."""
    return max(
        float((one.detach().float() - other).abs().max() / other.abs().max().clamp(min=1e-30))
        for one, other in zip(tensors, exact, strict=True)
    )


def measure(case: Case, device: torch.device, warm: int, timed: int) -> dict[str, Any]:
    """Milliseconds, memory beside the inputs, and error of the stock and the fused side."""
    exact = [tensor.detach() for tensor in _pass(case.make("exact"), device)]
    result: dict[str, Any] = {"name": case.name}
    for kind in ("stock", "fused"):
        side = case.make(kind)
        result[f"{kind}_error"] = _error(_pass(side, device), exact)
        result[f"{kind}_ms"] = _milliseconds(side, device, warm, timed)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            _pass(side, device)
            result[f"{kind}_gb"] = round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)
        del side
    result["times_as_fast"] = round(result["stock_ms"] / max(result["fused_ms"], 1e-9), 2)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Measure every operation of every shape; a line each, and all of it as JSON."""
    assert __doc__
    parser = argparse.ArgumentParser("python -m benchmarks.kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="1.5b,8b", help="tiny, 1.5b, 8b")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--only", default="", help="a word in the names of the operations to measure")
    parser.add_argument("--out", type=Path, default=Path("results-kernels.json"))
    options = parser.parse_args(words)
    device = torch.device(options.device)
    warm, timed = (WARM, TIMED) if device.type == "cuda" else (1, 3)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    content: dict[str, Any] = {"device": name, "torch": torch.__version__, "tokens": options.tokens}
    for shape in options.shape.split(","):
        results = content[shape] = []
        for case in cases(SHAPES[f"shape-{shape}"], options.tokens, device):
            if options.only.lower() not in case.name.lower():
                continue
            try:
                result = measure(case, device, warm, timed)
            except Exception as error:  # one operation that fails must not hide the others
                result = {"name": case.name, "failed": f"{type(error).__name__}: {error}"}
            results.append(result)
            print(shape, json.dumps(result), flush=True)
            content["notes"] = notes
            options.out.write_text(json.dumps(content, indent=1) + "\n")
    return (
        1 if any("failed" in result for shape in options.shape.split(",") for result in content[shape]) else 0
    )


if __name__ == "__main__":
    sys.exit(main())
