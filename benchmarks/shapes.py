"""Models of a known shape with random weights, built on their device, and the FLOPs of a training step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """A Llama's dimensions."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def body(self) -> int:
        """Weights that every token is multiplied with, without the head."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the head, for a token whose successor is scored."""
        return self.hidden * self.vocabulary


SHAPES = {
    "shape-tiny": Shape(2, 64, 128, 4, 2, 16, 49152, True),
    "shape-1.5b": Shape(28, 1536, 8960, 12, 2, 128, 151936, True),  # Qwen2.5-1.5B
    "shape-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),  # Llama 3.1 8B
}
# Dense bfloat16 TFLOP/s with float32 accumulation, by a part of the device's name, from data sheets.
PEAKS = {
    "H100": 989,
    "H200": 989,
    "H800": 989,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L4": 121,
    "4090": 165,
    "3090": 71,
    "A10": 125,
}


def build(name: str, device: str, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """The same random weights in every process on this device."""
    from transformers import AutoModelForCausalLM

    from alignment_lab.models.locate import llama_config

    # it reads the same attributes of the Shape of alignment_lab.config
    config = llama_config(SHAPES[name], max_position_embeddings=8192)  # type: ignore[arg-type]
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()


def adapter(rank: int) -> Any:
    """LoRA on every linear layer but the head."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def peak_tflops(device_name: str) -> float | None:
    """The device's dense bfloat16 peak, or None for a device that the table lacks."""
    return next((float(peak) for part, peak in PEAKS.items() if part in device_name), None)


def step_flops(shape: Shape, pairs: Iterable[tuple[int, int, int]], *, shared: bool, lora: bool) -> float:
    """Model FLOPs of one training step on (prompt, chosen, rejected) lengths.

    Padding, recomputation and the reference pass are not counted.

    Full training: 6 per weight and token (2 forward, 4 backward), the head for scored tokens only; LoRA: 4,
    as frozen weights need no gradient (the adapters themselves, under 1 %, are left out). Attention: 4 *
    heads * head_dim per query and visible key forward, twice that backward. `shared`: the prompt is computed
    once, as the packed engine does; else once per answer.
    """
    per_weight = 4 if lora else 6
    tokens = scored = seen = 0
    for prompt, *answers in pairs:
        tokens += sum(answers) + prompt * (1 if shared else len(answers))
        scored += sum(answers)
        seen += _causal_pairs(prompt) * (1 if shared else len(answers)) + sum(
            answer * prompt + _causal_pairs(answer) for answer in answers
        )
    attention = 12 * shape.layers * shape.heads * shape.head_dim * seen
    return per_weight * (shape.body * tokens + shape.head * scored) + attention


def _causal_pairs(length: int) -> int:
    """Pairs of a token and a token that it attends to, itself included."""
    return length * (length + 1) // 2
