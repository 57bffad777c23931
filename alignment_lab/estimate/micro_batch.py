"""How many tokens a forward pass takes, and whether it checkpoints activations; the same in runs and plans.

Calibrated twice. A Llama of 135M parameters in float32: a token of a forward and backward pass costs 1.7 MB,
which is about 8 vectors of the hidden size and 6 of the intermediate size per layer. Small Llamas under
autocast, by the tensors that autograd saves: 32 bytes per number of the hidden size and 8 per number of the
intermediate size, which for usual models is the same within a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import Attention, Experiment, Format, Shape
from .model_states import STATE_BYTES, loaded_model_bytes, state_bytes, without_offloaded
from .shape import parameter_counts, shape_from_config
from .work import Workload

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MEMORY_FRACTION = 0.8  # of free memory that a plan may use: allocators fragment
CPU_TOKENS, CUDA_TOKENS = 1024, 16384  # a larger forward pass is hardly faster
# Of activations on a CPU: glibc finds no use for the holes between tensors of several sizes, and returns only
# the top of the heap. docs/LOG.md has what was measured, 0.45 to 0.72, and what a heap without holes costs in
# speed.
HEAP_FRAGMENTATION = 0.6


@dataclass(frozen=True)
class MicroBatchPlan:
    """Tokens per forward pass, and whether activations are recomputed in the backward pass."""

    tokens: int
    checkpointing: bool


def activation_bytes(
    config: PretrainedConfig | Shape, tokens: int, dtype_bytes: int, *, checkpointing: bool = False
) -> int:
    """Bytes that `tokens` tokens keep until the backward pass; `dtype_bytes` is 4 or 2 bytes per number."""
    shape = _to_shape(config)
    return tokens * (
        activation_bytes_per_token(shape, dtype_bytes, checkpointing) + logits_bytes_per_token(shape)
    )


def activation_bytes_per_token(shape: Shape, dtype_bytes: int, checkpointing: bool) -> int:
    """Activations without logits.

    With checkpointing, the input of each layer (float32: autocast keeps sums in it) and all activations of
    one layer.
    """
    layer = dtype_bytes * (8 * shape.hidden + 6 * shape.intermediate)
    return shape.layers * 4 * shape.hidden + layer if checkpointing else shape.layers * layer


def logits_bytes_per_token(shape: Shape) -> int:
    """accelerate converts logits to float32, and their gradient takes their place."""
    return 4 * shape.vocabulary


def plan_micro_batch(
    config: PretrainedConfig | Shape,
    *,
    trained: int,
    dtype_bytes: int,
    free_bytes: int,
    longest_row: int,
    cuda: bool,
    tokens: int | None,
    checkpointing: bool | None,
) -> MicroBatchPlan:
    """What is set is kept; else the largest forward pass that pays and fits.

    Checkpointing is chosen only where the longest row does not fit without it.

    `trained` parameters have states, `free_bytes` are free beside the weights, a row of `longest_row` tokens
    is not split.
    """
    capacity = int(MEMORY_FRACTION * free_bytes) - (STATE_BYTES - 4) * trained
    return fit_micro_batch(_to_shape(config), capacity, dtype_bytes, longest_row, cuda, tokens, checkpointing)


def choose_micro_batch(
    spec: Experiment,
    config: PretrainedConfig,
    *,
    dtype_bytes: int,
    free_bytes: int,
    longest_row: int,
    cuda: bool,
    processes: int,
) -> MicroBatchPlan:
    """The forward pass of a run that has loaded its weights, chosen as `action=plan` chooses it.

    `free_bytes` are free on the device, or in host memory for each process, beside the loaded model.
    """
    shape, parallel, training = shape_from_config(config), spec.parallel, spec.training
    counts = parameter_counts(shape, parallel, scores=not spec.method.generates)
    states = state_bytes(shape, counts, parallel, training.optim, dtype_bytes, processes)
    loaded = loaded_model_bytes(counts, parallel, states, dtype_bytes, cuda)
    states = without_offloaded(states, parallel) if cuda else states
    capacity = activation_capacity(free_bytes + loaded, states, cuda)
    return fit_micro_batch(
        shape,
        capacity,
        dtype_bytes,
        longest_row,
        cuda,
        training.micro_tokens,
        training.gradient_checkpointing,
    )


def fit_micro_batch(
    shape: Shape,
    capacity: int,
    dtype_bytes: int,
    longest_row: int,
    cuda: bool,
    tokens: int | None,
    checkpointing: bool | None,
) -> MicroBatchPlan:
    """The same, where activations may have `capacity` bytes."""
    if checkpointing is None:
        checkpointing = activation_bytes(shape, max(longest_row, tokens or 0), dtype_bytes) > capacity
    if tokens is None:
        per_token = activation_bytes(shape, 1, dtype_bytes, checkpointing=checkpointing)
        tokens = max(1, min(CUDA_TOKENS if cuda else CPU_TOKENS, capacity // per_token))
    return MicroBatchPlan(tokens, checkpointing)


def activation_capacity(free_bytes: int, states: dict[str, int], cuda: bool) -> int:
    """Bytes that activations may have: a fraction of what weights leave, minus the other states.

    On a CPU no more than the holes in the heap allow; gradients and optimizer states lie in these holes.
    """
    total = sum(states.values())
    capacity = int(MEMORY_FRACTION * (free_bytes - states["weights"])) - (total - states["weights"])
    outside_holes = total - states["gradients"] - states["optimizer"]
    return capacity if cuda else min(capacity, int((free_bytes - outside_holes) / (1 + HEAP_FRAGMENTATION)))


def max_row_tokens(spec: Experiment, workload: Workload | None = None) -> int:
    """The tokens of the longest row, which a forward pass must take; a pair is its prompt and both answers.

    With padding, rows are not looked at: a batch is as long as `data.max_length` allows.
    """
    limit = spec.data.max_length * (2 if spec.method.format is Format.preference else 1)
    if workload is None or not workload.longest_row or not _packs_rows(spec):
        return limit
    return min(limit, workload.longest_row)


def largest_micro_batch(spec: Experiment, plan: MicroBatchPlan, workload: Workload | None) -> tuple[int, int]:
    """(tokens, scored tokens) of the largest forward pass: no row is split, and none exceeds its step."""
    tokens = max(plan.tokens, max_row_tokens(spec, workload))
    if workload is None or not _packs_rows(spec):
        return tokens, tokens
    if workload.max_step_tokens is None or workload.max_step_scored is None:
        return tokens, tokens
    tokens = min(tokens, workload.max_step_tokens)
    return tokens, min(tokens, workload.max_step_scored)


def _packs_rows(spec: Experiment) -> bool:
    return spec.model.attention is Attention.shared_prefix


def _to_shape(config: PretrainedConfig | Shape) -> Shape:
    return config if isinstance(config, Shape) else shape_from_config(config)
