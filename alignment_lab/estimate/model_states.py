"""Bytes of weights, gradients and optimizer states on one device, which no number of tokens changes."""

from __future__ import annotations

from ..config import Adapter, Optimizer, Parallel, Quantization, Shape, Sharding
from .shape import ParameterCounts

STATE_BYTES = 16  # per trained parameter: float32 weight, gradient and Adam's two moments
ADAM_MOMENT_BYTES = 8
MOMENT_BYTES = {
    Optimizer.rmsprop: 4,
    Optimizer.sgd: 0,
    Optimizer.adafactor: 0,
}  # per trained parameter; else Adam's
QUANTIZED_BYTES = {  # per weight of a frozen linear layer
    Quantization.nf4: 0.5
    + 1 / 64
    + 4 / (64 * 256),  # 4 bits, a byte per 64 weights, a float32 per 256 of those bytes
    Quantization.int8: 1.0,
}
STATES = ("weights", "gradients", "optimizer")
SHARDED_STATES = {
    Sharding.zero1: ("optimizer",),
    Sharding.zero2: ("gradients", "optimizer"),
    Sharding.zero3: STATES,
    Sharding.fsdp: STATES,
}
DEEPSPEED = (Sharding.zero1, Sharding.zero2, Sharding.zero3)
MAX_LIVE_PARAMETERS = 10**9  # gathered at once under ZeRO-3: DeepSpeed's stage3_max_live_parameters


def state_bytes(
    shape: Shape,
    counts: ParameterCounts,
    parallel: Parallel,
    optim: Optimizer,
    dtype_bytes: int,
    processes: int,
) -> dict[str, int]:
    """Bytes on one of `processes` devices, under the names of MemoryBreakdown.

    `dtype_bytes`: of a number in computation.
    """
    deepspeed = parallel.sharding in DEEPSPEED
    weight = dtype_bytes if deepspeed else 4
    moments = MOMENT_BYTES.get(optim, ADAM_MOMENT_BYTES)
    per_parameter = {
        "weights": weight,
        "gradients": weight,
        "optimizer": moments + (4 if deepspeed else 0),  # DeepSpeed keeps float32 master weights
    }
    sharded = SHARDED_STATES.get(parallel.sharding, ())
    shards = {state: processes if state in sharded else 1 for state in STATES}
    trained = {state: size * counts.trained // shards[state] for state, size in per_parameter.items()}
    if parallel.adapter is Adapter.none:
        states = {**trained, "adapter": 0}
    else:
        base = frozen_bytes(counts, parallel, dtype_bytes) // shards["weights"]
        states = {"weights": base, "gradients": 0, "optimizer": 0, "adapter": sum(trained.values())}
    copies = 2 * _autocast_parameters(counts, parallel) if dtype_bytes == 2 and not deepspeed else 0
    gathered = _gathered_bytes(shape, counts, parallel, dtype_bytes, processes)
    return {**states, "copies": copies, "gathered": gathered}


def without_offloaded(states: dict[str, int], parallel: Parallel) -> dict[str, int]:
    """The states that stay on the device: all of them, unless weights and states are offloaded."""
    return {**states, **dict.fromkeys((*STATES, "adapter"), 0)} if parallel.offload else states


def loading_bytes(counts: ParameterCounts, parallel: Parallel) -> int:
    """Float32 weights, whole on a device until DeepSpeed has converted them; ZeRO-3 loads them sharded."""
    whole = parallel.sharding in (Sharding.zero1, Sharding.zero2) and parallel.adapter is Adapter.none
    return 4 * counts.total if whole else 0


def host_bytes(counts: ParameterCounts, parallel: Parallel, states: dict[str, int], dtype_bytes: int) -> int:
    """Host memory of one process: what is offloaded, or weights that pass through it to the device.

    Not what ZeRO-3 shards or bitsandbytes quantizes while reading.
    """
    if parallel.offload:
        return sum(states[state] for state in (*STATES, "adapter"))
    if parallel.sharding is Sharding.zero3 or parallel.quantization is not Quantization.none:
        return 0
    return counts.total * (4 if parallel.adapter is Adapter.none else dtype_bytes)


def loaded_model_bytes(
    counts: ParameterCounts, parallel: Parallel, states: dict[str, int], dtype_bytes: int, cuda: bool
) -> int:
    """Bytes that a loaded model takes on the device before training begins.

    FSDP finds it in host memory, unless it is quantized.
    """
    if parallel.offload:
        return 0
    if parallel.sharding is Sharding.fsdp:
        quantized = parallel.quantization is not Quantization.none
        adapted = parallel.adapter is not Adapter.none
        whole = frozen_bytes(counts, parallel, dtype_bytes) if adapted else 4 * counts.total
        return whole if quantized or not cuda else 0
    return loading_bytes(counts, parallel) or states["weights"]


def frozen_bytes(counts: ParameterCounts, parallel: Parallel, dtype_bytes: int) -> int:
    """Bytes of the base under an adapter, in the computation's dtype; only linear layers are quantized."""
    per_weight = QUANTIZED_BYTES.get(parallel.quantization, dtype_bytes)
    return int(counts.linear_total * per_weight) + (counts.total - counts.linear_total) * dtype_bytes


def _autocast_parameters(counts: ParameterCounts, parallel: Parallel) -> int:
    """The weights that autocast casts once per forward pass and keeps: float32 matrices that are trained."""
    if parallel.adapter is not Adapter.none:
        return counts.adapter
    return counts.linear_total + counts.output_projection


def _gathered_bytes(
    shape: Shape, counts: ParameterCounts, parallel: Parallel, dtype_bytes: int, processes: int
) -> int:
    """Bytes of what is gathered or dequantized for a moment, and of communication buckets."""
    frozen = parallel.adapter is not Adapter.none
    total = 0
    if parallel.quantization is not Quantization.none:
        total += dtype_bytes * shape.hidden * shape.intermediate  # the largest matrix, dequantized
    if parallel.sharding is Sharding.zero3:
        total += dtype_bytes * min(counts.total, MAX_LIVE_PARAMETERS)
    if parallel.sharding is Sharding.fsdp:
        # The layer in use, the next one, and what is outside of the layers; with gradients where it is
        # trained.
        per_weight = QUANTIZED_BYTES.get(parallel.quantization, dtype_bytes) if frozen else 2 * 4
        outside = dtype_bytes if frozen else 2 * 4
        total += int(2 * per_weight * counts.linear_per_layer) + outside * (counts.embedding + counts.head)
    if parallel.sharding is Sharding.ddp and processes > 1:
        total += 4 * counts.trained  # the buckets that are averaged are copies of the gradients
    return total
