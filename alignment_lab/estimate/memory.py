"""What a run needs in memory on one device, item by item. One arithmetic serves the run itself and `action=plan`.

Calibrated twice. A Llama of 135M parameters in float32: a token of a forward pass that goes back costs 1.7 MB, a layer about 8 vectors of
the hidden size and 6 of the intermediate one. Small Llamas under autocast, by what autograd saves: 32 bytes a number of the hidden size
and 8 of the intermediate one, which for usual models comes to the same within a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..config import (
    Adapter,
    Attention,
    Dtype,
    Experiment,
    Format,
    Optimizer,
    Parallel,
    Quantization,
    Shape,
    Sharding,
)
from .devices import GB, Device
from .shape import ParameterCounts, model_shape, parameter_counts, shape_from_config
from .work import Workload

STATE_BYTES = 16  # bytes per trained parameter: float32 weight, gradient and Adam's two moments
MEMORY_FRACTION = 0.8  # of free memory that a plan may use: allocators fragment
CPU_TOKENS, CUDA_TOKENS = 1024, 16384  # beyond these a larger forward pass is hardly faster
MOMENTS = {
    Optimizer.rmsprop: 4,
    Optimizer.sgd: 0,
    Optimizer.adafactor: 0,
}  # bytes per trained parameter; Adam's are 8
STORED = {  # bytes of a frozen weight of a linear layer
    Quantization.nf4: 0.5
    + 1 / 64
    + 4 / (64 * 256),  # four bits, a byte for 64 of them, a float32 for 256 of those
    Quantization.int8: 1.0,
}
ALL = ("weights", "gradients", "optimizer")
CUT = {
    Sharding.zero1: ("optimizer",),
    Sharding.zero2: ("gradients", "optimizer"),
    Sharding.zero3: ALL,
    Sharding.fsdp: ALL,
}
DEEPSPEED = (Sharding.zero1, Sharding.zero2, Sharding.zero3)
LIVE = 10**9  # parameters that ZeRO-3 keeps gathered: DeepSpeed's stage3_max_live_parameters
FRAGMENTS = 0.1  # of what comes and goes: what an allocator cannot reuse
# Of activations on a CPU: glibc finds no use for the holes between tensors of several sizes, and gives back only the heap's top.
# docs/LOG.md has what was measured, 0.45 to 0.72, and what a heap without holes costs in speed.
HEAP = 0.6
CONTEXT = {
    True: 1.0 * GB,
    False: 0.5 * GB,
}  # on an accelerator CUDA, its libraries and NCCL; on a CPU the imports: 0.51 GB measured


@dataclass(frozen=True)
class MicroBatchPlan:
    """Tokens per forward pass, and whether activations are computed twice instead of kept."""

    tokens: int
    checkpointing: bool


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes on one device, by what they hold."""

    weights: int = 0
    copies: int = 0  # autocast's, in bfloat16, of float32 weights; not cut, and kept through the forward pass
    gradients: int = 0
    optimizer: int = 0
    adapter: int = 0  # its weights, gradients and optimizer
    gathered: int = 0  # layers made whole, buckets that are sent, a matrix that is dequantized
    activations: int = 0
    logits: int = 0  # of scored tokens: at most all of a pass
    reference: int = 0  # none: it is stored log-probabilities
    fragments: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True)
class MemoryEstimate:
    """What an experiment needs on each of `processes` devices of a kind, and how it would be laid out there."""

    parallel: Parallel
    device: Device
    processes: int
    memory: MemoryBreakdown
    micro_batch: MicroBatchPlan
    capacity: int  # bytes that one process may have
    micro_batch_tokens: int  # tokens of the largest forward pass
    loading_bytes: int = 0  # bytes of the device while the model comes in, where that is more than what stays
    host_bytes: int = 0  # bytes of the machine's memory per process: what is offloaded, or weights on their way to an accelerator

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(self.memory.total, self.loading_bytes)

    @property
    def fits(self) -> bool:
        """Whether the device has that much."""
        return self.peak <= self.capacity


def activation_bytes(config: Any, tokens: int, width: int, *, checkpointing: bool = False) -> int:
    """What `tokens` tokens keep between forward and backward; `width` is 4 or 2 bytes a number."""
    shape = config if isinstance(config, Shape) else shape_from_config(config)
    return tokens * (_kept(shape, width, checkpointing) + _logits(shape))


def _kept(shape: Shape, width: int, checkpointing: bool) -> int:
    """Bytes a token. With checkpointing, a layer's input each (float32: autocast leaves sums in it) and all of one layer."""
    layer = width * (8 * shape.hidden + 6 * shape.intermediate)
    return shape.layers * 4 * shape.hidden + layer if checkpointing else shape.layers * layer


def _logits(shape: Shape) -> int:
    """Bytes a token: accelerate gives logits back in float32, and their gradient takes their place."""
    return 4 * shape.vocabulary


def plan_micro_batch(
    config: Any,
    *,
    trained: int,
    width: int,
    free: int,
    longest: int,
    cuda: bool,
    tokens: int | None,
    checkpointing: bool | None,
) -> MicroBatchPlan:
    """What is set stays; else the largest forward pass that pays and fits, with checkpointing only where nothing fits without.

    `trained` parameters have states, `free` bytes are there besides the weights, `longest` tokens cannot be parted.
    """
    shape = config if isinstance(config, Shape) else shape_from_config(config)
    return _layout(
        shape, int(MEMORY_FRACTION * free) - (STATE_BYTES - 4) * trained, width, longest, cuda, tokens, checkpointing
    )


def _layout(
    shape: Shape,
    room: int,
    width: int,
    longest: int,
    cuda: bool,
    tokens: int | None,
    checkpointing: bool | None,
) -> MicroBatchPlan:
    """The same, once it is known how many bytes activations may have."""
    if checkpointing is None:
        checkpointing = activation_bytes(shape, max(longest, tokens or 0), width) > room
    if tokens is None:
        each = activation_bytes(shape, 1, width, checkpointing=checkpointing)
        tokens = max(1, min(CUDA_TOKENS if cuda else CPU_TOKENS, room // each))
    return MicroBatchPlan(tokens, checkpointing)


def estimate_memory(
    spec: Experiment, dials: Parallel, device: Device, processes: int, load: Workload | None = None
) -> MemoryEstimate | None:
    """What this experiment with these dials needs on each of so many devices; None where its model's shape is not known here.

    The run's own choice of a forward pass is made beforehand, from what the device leaves beside weights and states. Without `load`,
    rows are taken for as long as `data.max_length` lets them be.
    """
    shape = model_shape(spec.model)
    if shape is None:
        return None
    known = parameter_counts(shape, dials, scores=not spec.method.generates)
    width = width_of(spec, device)
    room = device.bytes if device.accelerator else device.bytes // max(1, processes // dials.nodes)
    fixed, host = _fixed(shape, known, dials, spec.training.optim, width, processes), 0
    if device.accelerator:
        fixed, host = _offloaded(fixed, dials), _host(known, dials, fixed, width)
    context, longest, asked = int(CONTEXT[device.accelerator]), max_row_tokens(spec, load), spec.training
    left = _left(room - context, fixed, device.accelerator)
    layout = _layout(
        shape, left, width, longest, device.accelerator, asked.micro_tokens, asked.gradient_checkpointing
    )
    passed, scored = _largest(spec, layout, load)
    activations = passed * _kept(shape, width, layout.checkpointing)
    logits = scored * _logits(shape) if spec.method.generates else 0
    moving = {**fixed, "activations": activations, "logits": logits}
    memory = MemoryBreakdown(**moving, fragments=_fragments(moving, device), context=context)
    return MemoryEstimate(
        dials, device, processes, memory, layout, room, passed, _loading(known, dials) + context, host
    )


def choose_micro_batch(
    spec: Experiment, config: Any, *, width: int, free: int, longest: int, cuda: bool, processes: int
) -> MicroBatchPlan:
    """The forward pass of a run that has its weights: what is set stays; else as in `plan`, with states cut as the dials say.

    `config` is transformers', and `free` bytes are there on the device, or in the machine for each process, beside what lies there already.
    """
    shape, dials, asked = shape_from_config(config), spec.parallel, spec.training
    known = parameter_counts(shape, dials, scores=not spec.method.generates)
    fixed = _fixed(shape, known, dials, asked.optim, width, processes)
    there = _there(known, dials, fixed, width, cuda)
    fixed = _offloaded(fixed, dials) if cuda else fixed
    left = _left(free + there, fixed, cuda)
    return _layout(shape, left, width, longest, cuda, asked.micro_tokens, asked.gradient_checkpointing)


def _there(known: ParameterCounts, dials: Parallel, fixed: dict[str, int], width: int, cuda: bool) -> int:
    """Bytes that a model takes where it computes, before training begins. FSDP finds it in the machine's memory, unless it is quantized."""
    if dials.offload:
        return 0
    if dials.sharding is Sharding.fsdp:
        quantized = dials.quantization is not Quantization.none
        whole = _frozen(known, dials, width) if dials.adapter is not Adapter.none else 4 * known.total
        return whole if quantized or not cuda else 0
    return _loading(known, dials) or fixed["weights"]


def _left(room: int, fixed: dict[str, int], cuda: bool) -> int:
    """Bytes that activations may have: the share of what weights leave, less states and copies; on a CPU, no more than holes allow."""
    left = int(MEMORY_FRACTION * (room - fixed["weights"])) - (sum(fixed.values()) - fixed["weights"])
    beside = sum(fixed.values()) - fixed["gradients"] - fixed["optimizer"]  # which lie in the holes
    return left if cuda else min(left, int((room - beside) / (1 + HEAP)))


def _offloaded(fixed: dict[str, int], dials: Parallel) -> dict[str, int]:
    """The items once weights and states wait elsewhere."""
    return {**fixed, **dict.fromkeys((*ALL, "adapter"), 0)} if dials.offload else fixed


def width_of(spec: Experiment, device: Device) -> int:
    """Bytes of a number that is computed with. On a CPU `auto` may be bfloat16, which only torch can find out: the larger is taken."""
    half = spec.model.dtype is Dtype.bfloat16 or (spec.model.dtype is Dtype.auto and device.accelerator)
    return 2 if half else 4


def max_row_tokens(spec: Experiment, load: Workload | None = None) -> int:
    """Tokens that one forward pass must take at least: a pair is its prompt with both answers. Padding is not foreseen by rows."""
    limit = spec.data.max_length * (2 if spec.method.format is Format.preference else 1)
    return min(limit, load.longest_row) if load and load.longest_row and _packs(spec) else limit


def _packs(spec: Experiment) -> bool:
    return spec.model.attention is Attention.shared_prefix


def _largest(spec: Experiment, layout: MicroBatchPlan, load: Workload | None) -> tuple[int, int]:
    """(tokens, scored ones) of the largest forward pass: a row is never parted, and no pass has more than its step."""
    tokens = max(layout.tokens, max_row_tokens(spec, load))
    if load is None or load.max_step_tokens is None or load.max_step_scored is None or not _packs(spec):
        return tokens, tokens
    tokens = min(tokens, load.max_step_tokens)
    return tokens, min(tokens, load.max_step_scored)


def _fragments(held: dict[str, int], device: Device) -> int:
    """Memory that is taken and holds nothing. On a CPU, gradients and moments, made after the first pass, fill the holes that it left."""
    usual = int(FRAGMENTS * sum(held[item] for item in ("activations", "logits", "gathered", "copies")))
    if device.accelerator:
        return usual
    return max(usual, int(HEAP * held["activations"]) - held["gradients"] - held["optimizer"])


def _fixed(
    shape: Shape, known: ParameterCounts, dials: Parallel, optim: Optimizer, width: int, processes: int
) -> dict[str, int]:
    """Everything that does not depend on the tokens of a pass, by item."""
    deepspeed = dials.sharding in DEEPSPEED
    weight = width if deepspeed else 4
    states = {
        "weights": weight,
        "gradients": weight,
        "optimizer": MOMENTS.get(optim, 8) + (4 if deepspeed else 0),
    }
    share = {what: processes if what in CUT.get(dials.sharding, ()) else 1 for what in ALL}
    trained = {what: size * known.trained // share[what] for what, size in states.items()}
    copies = 2 * _cast(known, dials) if width == 2 and not deepspeed else 0
    gathered = _gathered(shape, known, dials, width, processes)
    if dials.adapter is Adapter.none:
        fixed = {**trained, "adapter": 0}
    else:
        base = _frozen(known, dials, width) // share["weights"]
        fixed = {"weights": base, "gradients": 0, "optimizer": 0, "adapter": sum(trained.values())}
    return {**fixed, "copies": copies, "gathered": gathered}


def _loading(known: ParameterCounts, dials: Parallel) -> int:
    """Float32 weights that lie whole on a device until DeepSpeed has made them bfloat16; ZeRO-3 loads them cut."""
    whole = dials.sharding in (Sharding.zero1, Sharding.zero2) and dials.adapter is Adapter.none
    return 4 * known.total if whole else 0


def _host(known: ParameterCounts, dials: Parallel, fixed: dict[str, int], width: int) -> int:
    """What waits in the machine's memory, or is read into it before it moves on: not what ZeRO-3 cuts or bitsandbytes packs meanwhile."""
    if dials.offload:
        return sum(fixed[item] for item in (*ALL, "adapter"))
    if dials.sharding is Sharding.zero3 or dials.quantization is not Quantization.none:
        return 0
    return known.total * (4 if dials.adapter is Adapter.none else width)


def _cast(known: ParameterCounts, dials: Parallel) -> int:
    """Weights that autocast casts once a pass and keeps: float32 matrices that are trained."""
    return known.adapter if dials.adapter is not Adapter.none else known.linear_total + known.output_projection


def _frozen(known: ParameterCounts, dials: Parallel, width: int) -> int:
    """Bytes of the base under an adapter: in the dtype that is computed with; of a quantized one only the linear layers are smaller."""
    stored = STORED.get(dials.quantization, width)
    return int(known.linear_total * stored) + (known.total - known.linear_total) * width


def _gathered(shape: Shape, known: ParameterCounts, dials: Parallel, width: int, processes: int) -> int:
    """What is made whole for a moment, and what is sent."""
    frozen = dials.adapter is not Adapter.none
    whole = 0
    if dials.quantization is not Quantization.none:
        whole += width * shape.hidden * shape.intermediate  # the largest matrix, dequantized
    if dials.sharding is Sharding.zero3:
        whole += width * min(known.total, LIVE)
    if (
        dials.sharding is Sharding.fsdp
    ):  # the layer at work, the next one, and what is no layer; of trained ones the gradients too
        per = (STORED.get(dials.quantization, width) if frozen else 2 * 4) * 2
        whole += int(per * known.linear_per_layer) + (width if frozen else 2 * 4) * (known.embedding + known.head)
    if dials.sharding is Sharding.ddp and processes > 1:
        whole += 4 * known.trained  # the buckets that are averaged are copies of the gradients
    return whole
