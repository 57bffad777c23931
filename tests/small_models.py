"""Small models of many families, sequences of every shape, and the outputs of plain transformers for them.

Plain means one sequence at a time, eager attention, no padding.
"""

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
FAMILIES: dict[str, dict[str, Any]] = {  # those that the lab guarantees to pack
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

# trees of three answers, of two, of one; prompts of 20 tokens, of 1, of none; answers of 1 token; all kinds
# of labels
SEQUENCES = [
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
ONE_BY_ONE = Engine(packed=False, max_tokens=1)  # a tree at a time, padded


def small_model(
    family: str,
    *,
    implementation: str = packed_attention.SHARED_PREFIX,
    dtype: torch.dtype = torch.float64,
    score_head: bool = False,
    **settings: Any,
) -> Any:
    """A random model of this family without dropout; with `score_head` a reward model.

    Weights are so large that every mistake in a mask changes nats, not rounding.
    """
    packed_attention.register()
    config = AutoConfig.for_model(
        family, **FAMILIES.get(family, GROUPED) | settings, **({"num_labels": 1} if score_head else {})
    )
    torch.manual_seed(0)
    auto_class = AutoModelForSequenceClassification if score_head else AutoModelForCausalLM
    model = auto_class.from_config(config, attn_implementation=implementation)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.to(dtype).eval()


def weighted_sum(index: int, logps: Tensor) -> Tensor:
    """A sum in which every token of every sequence has another weight, so that no gradient cancels."""
    return (
        logps * torch.cos(torch.arange(len(logps), dtype=logps.dtype, device=logps.device) + 7 * index)
    ).sum()


def gradients(model: Any) -> dict[str, Tensor]:
    """A copy of every trained parameter's gradient."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def engine_outputs(
    model: Any, sequences: Sequence[ScoredSequence], batches: Engine | Sequence[ForwardBatch]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The engine's log p of each sequence's scored tokens, and the gradients of their weighted sum."""
    model.zero_grad()
    all_logps: dict[int, Tensor] = {}
    for batch in batches.batches(sequences) if isinstance(batches, Engine) else batches:
        batch_logps = token_logprobs(model, batch.to(model.device))
        split_logps = batch_logps.logps.split(batch_logps.lengths.tolist())
        by_index = dict(zip(batch_logps.sequence_ids.tolist(), split_logps, strict=True))
        sum(weighted_sum(index, logps) for index, logps in by_index.items()).backward()
        all_logps |= {index: logps.detach() for index, logps in by_index.items()}
    return [all_logps[index] for index in range(len(sequences))], gradients(model)


def plain_outputs(model: Any, sequences: Sequence[ScoredSequence]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same from plain transformers: each sequence alone, eager attention, log softmax of all logits."""
    attention, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval().zero_grad()
    logps_list = []
    for index, sequence in enumerate(sequences):
        ids = torch.tensor([sequence.prompt + sequence.answer], device=model.device)
        labels = sequence.labels or [IGNORE_INDEX] * len(sequence.prompt) + sequence.answer
        scored = [position for position in range(1, len(labels)) if labels[position] != IGNORE_INDEX]
        logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        rows, columns = [position - 1 for position in scored], [labels[position] for position in scored]
        logps = logps[rows, columns] if scored else logps[:0, 0]
        if scored:
            weighted_sum(index, logps).backward()
        logps_list.append(logps.detach())
    model.set_attn_implementation(attention)
    model.train(training)
    return logps_list, gradients(model)


def assert_outputs_equal(
    outputs: tuple[list[Tensor], dict[str, Tensor]],
    expected: tuple[list[Tensor], dict[str, Tensor]],
    tolerance: float,
) -> None:
    """Log-probabilities and gradients within `tolerance` of the largest of their kind."""
    (logps, gradients_of), (expected_logps, expected_gradients) = outputs, expected
    assert [len(values) for values in logps] == [len(values) for values in expected_logps]
    for actual, target in zip(logps, expected_logps, strict=True):
        assert actual.numel() == 0 or relative_difference(actual, target) <= tolerance
    assert gradients_of.keys() == expected_gradients.keys()
    for name, gradient in gradients_of.items():
        assert relative_difference(gradient, expected_gradients[name]) <= tolerance, name


def relative_difference(actual: Tensor, target: Tensor) -> float:
    """The largest difference over the largest value, or over 1 where all are smaller."""
    if not math.prod(actual.shape):
        return 0.0
    return float((actual - target).abs().max() / max(1.0, float(target.abs().max())))
