"""Small models of many families, sequences of every shape, and what plain transformers says of them: one by one, eager, unpadded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment_lab.engine.layout import Engine, ForwardBatch
from alignment_lab.engine.logprobs import token_logprobs
from alignment_lab.engine.packing import IGNORE_INDEX, ScoredSequence
from alignment_lab.models import packed_attention

VOCABULARY = 64
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
PLAIN |= {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
GROUPED = PLAIN | {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {  # those that the lab promises to pack
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    "gpt2": PLAIN | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 128},
    "phi": PLAIN,
    "phi3": GROUPED,
    "smollm3": GROUPED | {"no_rope_layers": [1, 0], "use_sliding_window": False},
}

SEQUENCES = [  # trees of three answers, of two, of one; prompts of 20 tokens, of 1, of none; answers of 1 token; labels of every kind
    ScoredSequence([5, 6, 7], [8, 9, 2]),
    ScoredSequence([11], [12, 13, 14, 15, 2]),
    ScoredSequence([5, 6, 7], [10]),
    ScoredSequence([], [3, 4, 5, 6]),
    ScoredSequence(list(range(20, 40)), [41, 2]),
    ScoredSequence([], [7, 8, 9, 10, 11, 12], labels=[IGNORE_INDEX, IGNORE_INDEX, 9, 10, IGNORE_INDEX, 12]),
    ScoredSequence([5, 6, 7], [11, 12, 13, 14, 2]),
    ScoredSequence([20, 21], [22, 23, 2], labels=[20, 21, 22, 23, 2]),
    ScoredSequence([11], [2]),
    ScoredSequence([20, 21], [24]),
]
LONGEST = max(map(len, SEQUENCES))  # 22
ALONE = Engine(packed=False, max_tokens=1)  # a tree at a time, padded


def small(
    family: str,
    *,
    implementation: str = packed_attention.SHARED_PREFIX,
    dtype: torch.dtype = torch.float64,
    scores: bool = False,
    **settings: Any,
) -> Any:
    """A random model of this family without dropout; weights so large that every mistake of a mask is nats, not roundings.

    With `scores` it is a reward model.
    """
    packed_attention.register()
    config = AutoConfig.for_model(
        family, **FAMILIES.get(family, GROUPED) | settings, **({"num_labels": 1} if scores else {})
    )
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation=implementation)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.to(dtype).eval()


def weighed(member: int, logps: Tensor) -> Tensor:
    """A sum in which every token of every sequence counts differently: a gradient cannot cancel."""
    return (
        logps * torch.cos(torch.arange(len(logps), dtype=logps.dtype, device=logps.device) + 7 * member)
    ).sum()


def gradients(model: Any) -> dict[str, Tensor]:
    """A copy of every trained parameter's gradient."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def asked(
    model: Any, sequences: Sequence[ScoredSequence], batches: Engine | Sequence[ForwardBatch]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the engine says: log p of each sequence's scored tokens, and the gradients of their weighed sum."""
    model.zero_grad()
    found: dict[int, Tensor] = {}
    for batch in batches.batches(sequences) if isinstance(batches, Engine) else batches:
        seen = token_logprobs(model, batch.to(model.device))
        parts = dict(zip(seen.sequence_ids.tolist(), seen.logps.split(seen.lengths.tolist()), strict=True))
        sum(weighed(member, logps) for member, logps in parts.items()).backward()
        found |= {member: logps.detach() for member, logps in parts.items()}
    return [found[member] for member in range(len(sequences))], gradients(model)


def expected(model: Any, sequences: Sequence[ScoredSequence]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same from plain transformers: each sequence alone, eager attention, log softmax of all logits."""
    kept, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval().zero_grad()
    found = []
    for member, sequence in enumerate(sequences):
        ids = torch.tensor([sequence.prompt + sequence.answer], device=model.device)
        labels = sequence.labels or [IGNORE_INDEX] * len(sequence.prompt) + sequence.answer
        scored = [place for place in range(1, len(labels)) if labels[place] != IGNORE_INDEX]
        logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        logps = (
            logps[[place - 1 for place in scored], [labels[place] for place in scored]]
            if scored
            else logps[:0, 0]
        )
        if scored:
            weighed(member, logps).backward()
        found.append(logps.detach())
    model.set_attn_implementation(kept)
    model.train(training)
    return found, gradients(model)


def assert_same(
    found: tuple[list[Tensor], dict[str, Tensor]],
    other: tuple[list[Tensor], dict[str, Tensor]],
    tolerance: float,
) -> None:
    """Log-probabilities and gradients within `tolerance` of the largest of their kind."""
    (logps, slopes), (true_logps, true_slopes) = found, other
    assert [len(values) for values in logps] == [len(values) for values in true_logps]
    for one, two in zip(logps, true_logps, strict=True):
        assert one.numel() == 0 or far(one, two) <= tolerance
    assert slopes.keys() == true_slopes.keys()
    for name, slope in slopes.items():
        assert far(slope, true_slopes[name]) <= tolerance, name


def far(one: Tensor, two: Tensor) -> float:
    """The largest difference over the largest value, or over 1 where all are smaller."""
    return float((one - two).abs().max() / max(1.0, float(two.abs().max()))) if math.prod(one.shape) else 0.0
