"""The parallel group: processes, sharding, adapter and quantization, and which of them exclude each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..validation import require, require_positive

DeviceType = Enum("DeviceType", ["auto", "cpu", "cuda"])
Sharding = Enum("Sharding", ["none", "ddp", "zero1", "zero2", "zero3", "fsdp"])
Adapter = Enum("Adapter", ["none", "lora", "dora", "rslora"])
Quantization = Enum("Quantization", ["none", "nf4", "int8"])


@dataclass
class Parallel:
    """Where the run happens, and how weights are sharded over processes, adapted and stored."""

    name: str = "single"
    device: DeviceType = DeviceType.auto
    processes: int | None = None  # on each node; null: one for each accelerator, one on a CPU
    nodes: int = 1
    sharding: Sharding = Sharding.none  # none is one process, ddp a copy on each, zero1-3 and fsdp shard
    offload: bool = False  # zero3: optimizer state and weights are kept in host memory
    adapter: Adapter = Adapter.none  # none trains every weight
    rank: int = 16  # of the adapter; recipes use 8 to 128
    alpha: int | None = None  # scale of the adapter; null: twice the rank
    targets: list[str] | None = (
        None  # the layers that get an adapter; null: every linear layer but the LM head
    )
    quantization: Quantization = Quantization.none  # of the weights under the adapter

    def __post_init__(self) -> None:
        require_positive("parallel", self, "processes", "nodes", "rank", "alpha")
        several = (self.processes or 1) * self.nodes > 1
        requested = f"{self.nodes} nodes" if self.nodes > 1 else f"{self.processes} processes"
        require(
            self.sharding is not Sharding.none or not several,
            "parallel.sharding",
            "none",
            f"is one process, and {requested} are requested; use parallel=ddp, zero2, zero3 or fsdp.",
        )
        _check_quantization(self)
        _check_offload(self)


def _check_quantization(parallel: Parallel) -> None:
    """What quantized weights can be combined with."""
    sharding, adapter = parallel.sharding, parallel.adapter
    quantized = parallel.quantization is not Quantization.none
    nf4, int8 = parallel.quantization is Quantization.nf4, parallel.quantization is Quantization.int8
    fsdp_on_cpu = sharding is Sharding.fsdp and parallel.device is DeviceType.cpu
    require(
        not quantized or adapter is not Adapter.none,
        "parallel.quantization",
        parallel.quantization.name,
        "quantized weights cannot be trained themselves; "
        "add an adapter: parallel.adapter=lora, or parallel=qlora.",
    )
    require(
        not quantized or sharding is not Sharding.zero3,
        "parallel.quantization",
        parallel.quantization.name,
        "ZeRO-3 cannot shard quantized weights; use parallel=fsdp_qlora to shard them, "
        "or parallel=zero2_qlora where they fit whole.",
    )
    require(
        not int8 or sharding is not Sharding.fsdp,
        "parallel.quantization",
        "int8",
        "FSDP cannot shard 8-bit weights; use parallel=fsdp_qlora, which stores 4 bits.",
    )
    require(
        not int8 or adapter is not Adapter.dora,
        "parallel.adapter",
        "dora",
        "peft's DoRA cannot read 8-bit weights; use parallel.adapter=lora, or parallel.quantization=nf4.",
    )
    require(
        not nf4 or not fsdp_on_cpu,
        "parallel.quantization",
        "nf4",
        "FSDP shards 4-bit weights only on accelerators; on a CPU use parallel=qlora.",
    )


def _check_offload(parallel: Parallel) -> None:
    """What offloading to host memory can be combined with."""
    require(
        not parallel.offload or parallel.sharding is Sharding.zero3,
        "parallel.offload",
        "true",
        "only ZeRO-3 offloads weights to host memory; use parallel=zero3_offload.",
    )
    require(
        not parallel.offload or parallel.device is not DeviceType.cpu,
        "parallel.offload",
        "true",
        "there is no accelerator to offload from on a CPU; use parallel=zero3.",
    )
