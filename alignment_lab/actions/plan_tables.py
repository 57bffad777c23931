"""The tables of a plan: the experiment, the memory on each device, the preset that fits each device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import estimate
from ..config import Adapter, Experiment
from ..estimate import GB, Device, MemoryEstimate, ParameterCounts, Workload
from ..report.render.formatting import format_duration

if TYPE_CHECKING:
    from rich.console import JustifyMethod

SAMPLE_ROWS = 1000  # that time is given for, where the number of rows is unknown
MEMORY_LABELS = {  # of the fields of MemoryBreakdown
    "weights": "weights",
    "copies": "copies in bfloat16",  # autocast's
    "gradients": "gradients",
    "optimizer": "optimizer",
    "adapter": "adapter",
    "gathered": "gathered, buckets",
    "activations": "activations, at most",
    "logits": "logits, at most",
    "fragments": "fragmentation",
    "context": "context, libraries",
}


def experiment_table(spec: Experiment, parameters: ParameterCounts, workload: Workload, source: str) -> Table:
    """Model, trained weights, rows, steps and work; `source`: where the numbers of tokens come from."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    in_layers = parameters.linear_total + parameters.layers * parameters.norms_per_layer
    table.add_row(
        "model",
        f"{spec.model.name}: {_format_count(parameters.total)} parameters, "
        f"{_format_count(in_layers)} of them in {parameters.layers} layers",
    )
    table.add_row("trained", _describe_trained(spec, parameters))
    rows = "unknown number of rows" if workload.rows is None else f"{workload.rows:,} rows"
    table.add_row(
        "data",
        f"{rows}, {workload.tokens_per_row:.0f} tokens each, {workload.scored_per_row:.0f} of them scored "
        f"({source})",
    )
    table.add_row("steps", _describe_steps(spec, workload))
    table.add_row("work", _describe_work(spec, parameters, workload))
    if spec.method.needs_reference:
        table.add_row(
            "reference",
            "takes no memory: its log-probabilities are computed once, with the policy's own weights, "
            "and stored",
        )
    return table


def _describe_trained(spec: Experiment, parameters: ParameterCounts) -> str:
    parallel = spec.parallel
    if parallel.adapter is Adapter.none:
        return f"every weight, by {spec.training.optim.name}"
    layers = ", ".join(parallel.targets) if parallel.targets else "every linear layer but the head"
    percent = 100 * parameters.adapter / parameters.total
    return (
        f"{parallel.adapter.name} of rank {parallel.rank} on {layers}: {_format_count(parameters.adapter)} "
        f"({percent:.2g} %)"
    )


def _describe_steps(spec: Experiment, workload: Workload) -> str:
    per_epoch, steps = estimate.steps_per_epoch(spec, workload), estimate.total_steps(spec, workload)
    batch = spec.training.global_batch
    tokens = batch * workload.tokens_per_row
    epochs = f"; {per_epoch} an epoch" if per_epoch else ""
    return f"{steps or 'unknown number'}, each of {batch} rows, about {tokens:,.0f} tokens{epochs}"


def _describe_work(spec: Experiment, parameters: ParameterCounts, workload: Workload) -> str:
    steps = estimate.total_steps(spec, workload) or _sample_steps(spec)
    step = estimate.step_flops(spec, parameters, workload)
    reference = estimate.reference_flops(spec, parameters, workload, steps)
    rule = "4 per weight and token: the base is frozen" if parameters.adapter else "6 per weight and token"
    once = f", {reference:.2g} for the reference, once" if reference else ""
    return f"{step:.2g} FLOPs a step ({rule}){once}"


def _sample_steps(spec: Experiment) -> int:
    """Steps of SAMPLE_ROWS rows, rounded up."""
    return -(-SAMPLE_ROWS // spec.training.global_batch)


def _format_count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def memory_table(
    spec: Experiment, parameters: ParameterCounts, workload: Workload, devices: list[Device], count: int
) -> RenderableType:
    """The memory on each of `count` devices, item by item: their sum, the chosen forward pass, the time."""
    needs = [
        need
        for device in plausible_devices(spec, devices, count)
        if (need := estimate.estimate_memory(spec, spec.parallel, device, count, workload))
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(no_wrap=True)
    for need in needs:
        table.add_column(Text(need.device.name), justify="right", no_wrap=True)
    for item in fields(estimate.MemoryBreakdown):
        sizes = [getattr(need.memory, item.name) for need in needs]
        if any(sizes):
            table.add_row(MEMORY_LABELS[item.name], *(f"{size / GB:.1f}" for size in sizes))
    table.add_section()
    for label, cells in _summary_rows(spec, parameters, workload, needs):
        table.add_row(label, *cells)
    each = "one device" if count == 1 else f"each of {count} devices"
    return Group(Text(f"\nparallel={spec.parallel.name}: GB on {each}", "bold"), table)


def plausible_devices(spec: Experiment, devices: list[Device], count: int) -> list[Device]:
    """The devices that the preset supports.

    A CPU only alone or as the only choice: no machine has eight of them.
    """
    supported = [device for device in devices if estimate.is_supported(spec.parallel, device)]
    return [device for device in supported if device.accelerator or count == 1 or len(devices) == 1]


def _summary_rows(
    spec: Experiment, parameters: ParameterCounts, workload: Workload, needs: list[MemoryEstimate]
) -> Iterator[tuple[str, list[Text | str]]]:
    """The rows under the items: a label, and a cell for each device."""
    yield "total", [f"{need.memory.total / GB:.1f}" for need in needs]
    yield "available", [f"{need.capacity / GB:.1f}" for need in needs]
    if any(need.loading_bytes > need.memory.total for need in needs):
        yield "while loading", [f"{need.loading_bytes / GB:.1f}" for need in needs]
    yield "fits", [Text("yes", "green") if need.fits else Text("no", "bold red") for need in needs]
    if any(need.host_bytes for need in needs):
        processes_per_node = [need.processes / spec.parallel.nodes for need in needs]
        host_bytes = [
            need.host_bytes * per_node for need, per_node in zip(needs, processes_per_node, strict=True)
        ]
        yield "host memory", [f"{size / GB:.0f}" for size in host_bytes]
    yield "tokens a pass", [f"{need.micro_batch_tokens:,}" for need in needs]
    yield "checkpointing", ["yes" if need.micro_batch.checkpointing else "no" for need in needs]
    passes = [
        estimate.micro_batches_per_step(spec, workload, need.micro_batch_tokens, need.processes)
        for need in needs
    ]
    yield "passes a step", [str(count) for count in passes]
    steps = estimate.total_steps(spec, workload)
    label = "time, at least" if steps else f"{SAMPLE_ROWS:,} rows, at least"
    times = [
        _format_time(spec, parameters, workload, need, count, steps or _sample_steps(spec))
        for need, count in zip(needs, passes, strict=True)
    ]
    yield label, [*times]


def _format_time(
    spec: Experiment,
    parameters: ParameterCounts,
    workload: Workload,
    need: MemoryEstimate,
    passes_per_step: int,
    steps: int,
) -> str:
    if not need.fits:
        return "–"
    training = steps * estimate.step_flops(spec, parameters, workload, passes_per_step)
    reference = estimate.reference_flops(spec, parameters, workload, steps)
    return format_duration(3600 * estimate.compute_hours(training + reference, need.device, need.processes))


def preset_table(spec: Experiment, devices: list[Device], counts: list[int]) -> RenderableType:
    """The least intrusive preset that fits each device, for each number of devices."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "GB", *("1 device" if count == 1 else f"{count} devices" for count in counts)):
        justify: JustifyMethod = "right" if heading == "GB" else "left"
        table.add_column(Text(heading), justify=justify)
    for device in devices:
        cells = [
            _preset_name(spec, device, count) if device.accelerator or count == 1 else "" for count in counts
        ]
        table.add_row(device.name, f"{device.gb:.0f}", *cells)
    return Group(Text("The least intrusive preset that fits", "bold"), table)


def _preset_name(spec: Experiment, device: Device, count: int) -> str:
    need = estimate.first_fitting_preset(spec, device, count)
    return need.parallel.name if need else "none"
