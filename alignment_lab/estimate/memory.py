"""What a run needs in memory on one device, item by item. A run and `action=plan` use the same arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..config import Dtype, Experiment, Parallel
from .devices import GB, Device
from .micro_batch import (
    HEAP_FRAGMENTATION,
    MicroBatchPlan,
    activation_bytes_per_token,
    activation_capacity,
    fit_micro_batch,
    largest_micro_batch,
    logits_bytes_per_token,
    max_row_tokens,
)
from .model_states import host_bytes, loading_bytes, state_bytes, without_offloaded
from .shape import model_shape, parameter_counts
from .work import Workload

FRAGMENTATION = 0.1  # of what is allocated and freed again: memory that the allocator cannot reuse
ACCELERATOR_CONTEXT_BYTES = int(1.0 * GB)  # CUDA, its libraries and NCCL
CPU_CONTEXT_BYTES = int(0.5 * GB)  # imported modules: 0.51 GB measured


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes on one device, by what they hold."""

    weights: int = 0
    copies: int = (
        0  # autocast's bfloat16 copies of float32 weights; not sharded, and kept through the forward pass
    )
    gradients: int = 0
    optimizer: int = 0
    adapter: int = 0  # its weights, gradients and optimizer states
    gathered: int = 0  # layers that are gathered, communication buckets, a matrix that is dequantized
    activations: int = 0
    logits: int = 0  # of scored tokens: at most all tokens of a forward pass
    reference: int = 0  # none: its log-probabilities are stored
    fragments: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """The sum of all items."""
        return sum(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True)
class MemoryEstimate:
    """What an experiment needs on each of `processes` devices of one kind, and its forward pass there."""

    parallel: Parallel
    device: Device
    processes: int
    memory: MemoryBreakdown
    micro_batch: MicroBatchPlan
    capacity: int  # bytes that one process may use
    micro_batch_tokens: int  # tokens of the largest forward pass
    loading_bytes: int = 0  # on the device while the model is loaded, where that is more than what stays
    host_bytes: int = (
        0  # host memory per process: what is offloaded, or weights on their way to an accelerator
    )

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(self.memory.total, self.loading_bytes)

    @property
    def fits(self) -> bool:
        """Whether the device has enough memory."""
        return self.peak <= self.capacity


def estimate_memory(
    spec: Experiment, parallel: Parallel, device: Device, processes: int, workload: Workload | None = None
) -> MemoryEstimate | None:
    """What this experiment needs with these settings on each of `processes` devices.

    None where the model's shape is not known here. The forward pass is chosen as the run would choose it,
    from what the device leaves beside weights and states. Without `workload`, rows are assumed to be as long
    as `data.max_length` allows.
    """
    shape = model_shape(spec.model)
    if shape is None:
        return None
    cuda, training = device.accelerator, spec.training
    counts = parameter_counts(shape, parallel, scores=not spec.method.generates)
    dtype_bytes = compute_dtype_bytes(spec, device)
    capacity = device.bytes if cuda else device.bytes // max(1, processes // parallel.nodes)
    context = ACCELERATOR_CONTEXT_BYTES if cuda else CPU_CONTEXT_BYTES
    states = state_bytes(shape, counts, parallel, training.optim, dtype_bytes, processes)
    host = host_bytes(counts, parallel, states, dtype_bytes) if cuda else 0
    states = without_offloaded(states, parallel) if cuda else states
    plan = fit_micro_batch(
        shape,
        activation_capacity(capacity - context, states, cuda),
        dtype_bytes,
        max_row_tokens(spec, workload),
        cuda,
        training.micro_tokens,
        training.gradient_checkpointing,
    )
    tokens, scored = largest_micro_batch(spec, plan, workload)
    items = {
        **states,
        "activations": tokens * activation_bytes_per_token(shape, dtype_bytes, plan.checkpointing),
        "logits": scored * logits_bytes_per_token(shape) if spec.method.generates else 0,
    }
    memory = MemoryBreakdown(**items, fragments=_fragment_bytes(items, device), context=context)
    loading = loading_bytes(counts, parallel) + context
    return MemoryEstimate(parallel, device, processes, memory, plan, capacity, tokens, loading, host)


def compute_dtype_bytes(spec: Experiment, device: Device) -> int:
    """Bytes per number in computation.

    On a CPU `auto` may be bfloat16, which only torch can tell: float32 is assumed.
    """
    half = spec.model.dtype is Dtype.bfloat16 or (spec.model.dtype is Dtype.auto and device.accelerator)
    return 2 if half else 4


def _fragment_bytes(items: dict[str, int], device: Device) -> int:
    """Memory that is allocated and unused.

    On a CPU, gradients and optimizer states, allocated after the first pass, fill the holes that it left in
    the heap.
    """
    transient = sum(items[item] for item in ("activations", "logits", "gathered", "copies"))
    fragments = int(FRAGMENTATION * transient)
    if device.accelerator:
        return fragments
    return max(
        fragments, int(HEAP_FRAGMENTATION * items["activations"]) - items["gradients"] - items["optimizer"]
    )
