"""`action=plan`: what a run would need and take, on the devices that people have. No weights, no accelerator, no torch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from heapq import nlargest
from math import ceil
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import data, estimate
from ..config import Adapter, DataSource, Experiment, Format, Sharding
from ..distributed.launch import is_run_leader
from ..estimate import DEVICES, GB, Device, MemoryEstimate, ParameterCounts, Workload
from ..report.render.formatting import format_duration
from ..runtime.command_line import CONSOLE_COMMAND, SCRIPT, typed_command
from ..runtime.errors import UserError
from ..runtime.redaction import redact_data
from ..runtime.run_directory import RunDirectory

CHARACTERS = 4  # of English, to a token of a usual vocabulary
AROUND = 5  # tokens that a chat template puts around a message
DENSE = (
    1.25  # times as many tokens a row may have, where it is to be bounded: the estimate may be a fifth short
)
COUNTS = (1, 8)  # devices, where nobody said how many
SAMPLE = 1000  # rows that time is given for, where their number is not known
OURS = (  # what of a command line the advice replaces
    *("action", "plan.device", "parallel", "parallel.processes"),
    *(f"parallel.{dial}" for dial in ("sharding", "adapter", "quantization", "offload")),
)
ITEMS = {
    "weights": "weights",
    "copies": "copies in bfloat16",  # autocast's
    "gradients": "gradients",
    "optimizer": "optimizer",
    "adapter": "adapter",
    "gathered": "gathered, buckets",
    "activations": "activations, at most",
    "logits": "logits, at most",
    "fragments": "fragments",
    "context": "context, libraries",
}


def run_plan(spec: Experiment, run: RunDirectory) -> None:
    """Print the plan and leave no run directory behind."""
    rows = None if spec.data.source is DataSource.hub else data.load_rows(spec)  # a plan needs no network
    show_plan(spec, rows, Console(quiet=not is_run_leader(spec.parallel)))
    run.discard_if_unused()


def show_plan(spec: Experiment, rows: data.Splits | None, console: Console) -> None:
    """Print model, memory, work and the smallest preset that fits. `rows` is None where the data cannot be read here."""
    devices = asked_devices(spec)
    if spec.parallel.name == estimate.AUTO:
        choice = estimate.choose_preset(spec)
        spec = replace(spec, parallel=choice.parallel)
        _say(choice.reason, console)
    known = estimate.experiment_parameters(spec)
    if known is None:
        raise UserError(
            f"action=plan: the shape of model={spec.model.name} is not known here; {estimate.UNKNOWN_SHAPE_REMEDY}."
        )
    load, source = measured(spec, rows)
    _say(_facts(spec, known, load, source), console)
    counts = asked_counts(spec)
    for count in counts:
        _say(memory_table(spec, known, load, devices, count), console)
    _say(
        preset_table(
            spec, devices, sorted({1, *counts} | ({8} if spec.parallel.processes is None else set()))
        ),
        console,
    )
    for line in advice(spec, devices, counts):
        _say(line, console, soft_wrap=True)


def _say(part: Any, console: Console, *, soft_wrap: bool = False) -> None:
    console.print(
        part, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap or isinstance(part, str)
    )


def asked_devices(spec: Experiment) -> list[Device]:
    """The device of `plan.device`; else what this machine has; where that has no accelerator, one of each size, and its processors."""
    if spec.plan.device is not None:
        return [estimate.get_device(spec.plan.device)]
    device, _ = estimate.local_device()
    return [device] if device.accelerator else [DEVICES[known] for known in estimate.LISTED_DEVICES]


def asked_counts(spec: Experiment) -> list[int]:
    """How many devices to plan for: what is set, else what this machine has, else one and eight."""
    dials, (device, count) = spec.parallel, estimate.local_device()
    if (
        dials.sharding is Sharding.none
        or dials.processes
        or (spec.plan.device is None and device.accelerator)
    ):
        return [estimate.total_processes(dials, count)]
    if spec.plan.device == "cpu":
        return [dials.nodes]
    return [count * dials.nodes for count in COUNTS]


def measured(spec: Experiment, rows: data.Splits | None) -> tuple[Workload, str]:
    """Rows and tokens, and where the figures come from: characters, or half of what a row may have."""
    limit = spec.data.max_length
    if rows is None:
        tokens = limit / 2
        scored = tokens if spec.method.format is Format.text else tokens / 2
        return Workload(
            None, tokens, scored
        ), "the data cannot be read here, so that half of data.max_length is assumed"
    sizes = [size for row in rows.train if (size := _size(row, limit))[0]]
    total, scored = sum(size for size, _ in sizes), sum(part for _, part in sizes)
    count, batch = max(1, len(sizes)), spec.training.global_batch
    if spec.method.format is Format.text:
        blocks = max(1, round(total / limit))
        source = f"estimated at {CHARACTERS} characters a token, in blocks of {limit}"
        return Workload(
            blocks, total / blocks, scored / blocks, *_bounds([(limit, limit)] * min(blocks, batch))
        ), source
    longest = nlargest(batch, (size for size, _ in sizes)), nlargest(batch, (part for _, part in sizes))
    bounds = _bounds([*zip(*longest, strict=True)])
    return Workload(
        count, total / count, scored / count, *bounds
    ), f"estimated at {CHARACTERS} characters a token"


def _bounds(rows: list[tuple[float, float]]) -> tuple[int, int, int]:
    """What the longest of these rows has at most, and all of them; and all of their scored tokens."""
    longest, step, scored = (
        max((size for size, _ in rows), default=1),
        sum(size for size, _ in rows),
        sum(part for _, part in rows),
    )
    return max(1, ceil(DENSE * longest)), max(1, ceil(DENSE * step)), max(1, ceil(DENSE * scored))


def _size(row: dict[str, Any], limit: int) -> tuple[float, float]:
    """(tokens, scored ones) of a row, cut as tokenizing would cut it; 0 where its prompt leaves no room."""
    if "text" in row:
        return (len(row["text"]) / CHARACTERS,) * 2
    if "messages" in row:
        parts = [(_tokens([message]), message["role"] == "assistant") for message in row["messages"]]
        whole, scored = (
            sum(tokens for tokens, _ in parts),
            sum(tokens for tokens, answers in parts if answers),
        )
        kept = min(1.0, limit / whole)
        return whole * kept, scored * kept
    prompt = _tokens(row["prompt"])
    answers = sum(
        min(_tokens(row[key]), limit - prompt) for key in ("chosen", "rejected", "completion") if key in row
    )
    return (prompt + answers, answers) if prompt < limit else (0.0, 0.0)


def _tokens(messages: list[dict[str, str]]) -> float:
    return sum(len(message["content"]) / CHARACTERS + AROUND for message in messages)


def _facts(spec: Experiment, known: ParameterCounts, load: Workload, source: str) -> Table:
    """Model, what is trained, rows, steps, work."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    inside = known.linear_total + known.layers * known.norms_per_layer
    table.add_row(
        "model",
        f"{spec.model.name}: {_count(known.total)} parameters, {_count(inside)} of them in {known.layers} layers",
    )
    table.add_row("trained", _trained(spec, known))
    rows = "unknown number of rows" if load.rows is None else f"{load.rows:,} rows"
    table.add_row(
        "data",
        f"{rows}, {load.tokens_per_row:.0f} tokens each, {load.scored_per_row:.0f} of them scored ({source})",
    )
    table.add_row("steps", _steps(spec, load))
    table.add_row("work", _work(spec, known, load))
    if spec.method.needs_reference:
        table.add_row(
            "reference",
            "takes no memory: its log-probabilities are computed once, with the policy's own weights, and stored",
        )
    return table


def _trained(spec: Experiment, known: ParameterCounts) -> str:
    dials = spec.parallel
    if dials.adapter is Adapter.none:
        return f"every weight, by {spec.training.optim.name}"
    where = ", ".join(dials.targets) if dials.targets else "every linear layer but the head"
    return f"{dials.adapter.name} of rank {dials.rank} on {where}: {_count(known.adapter)} ({100 * known.adapter / known.total:.2g} %)"


def _steps(spec: Experiment, load: Workload) -> str:
    epoch, steps = estimate.steps_per_epoch(spec, load), estimate.total_steps(spec, load)
    tokens = spec.training.global_batch * load.tokens_per_row
    said = (
        f"{steps or 'unknown number'}, each of {spec.training.global_batch} rows, about {tokens:,.0f} tokens"
    )
    return said + (f"; {epoch} an epoch" if epoch else "")


def _work(spec: Experiment, known: ParameterCounts, load: Workload) -> str:
    steps = estimate.total_steps(spec, load) or _sampled(spec)
    step, once = estimate.step_flops(spec, known, load), estimate.reference_flops(spec, known, load, steps)
    rule = "4 a weight and token: the base is frozen" if known.adapter else "6 a weight and token"
    before = f", {once:.2g} for the reference, once" if once else ""
    return f"{step:.2g} FLOPs a step ({rule}){before}"


def _sampled(spec: Experiment) -> int:
    """Steps of SAMPLE rows."""
    return -(-SAMPLE // spec.training.global_batch)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def memory_table(
    spec: Experiment, known: ParameterCounts, load: Workload, devices: list[Device], count: int
) -> RenderableType:
    """What each of `count` devices holds, kind by kind: items, their sum, the forward pass that would be chosen, the time."""
    each = "one device" if count == 1 else f"each of {count} devices"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    found = [
        need
        for device in _sensible(spec, devices, count)
        if (need := estimate.estimate_memory(spec, spec.parallel, device, count, load))
    ]
    for heading, justify in [("", "left"), *((need.device.name, "right") for need in found)]:
        table.add_column(Text(heading), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for item in fields(estimate.MemoryBreakdown):
        sizes = [getattr(need.memory, item.name) for need in found]
        if any(sizes):
            table.add_row(ITEMS[item.name], *(f"{size / GB:.1f}" for size in sizes))
    table.add_section()
    for label, cells in _conclusions(spec, known, load, found):
        table.add_row(label, *cells)
    return Group(Text(f"\nparallel={spec.parallel.name}: GB on {each}", "bold"), table)


def _sensible(spec: Experiment, devices: list[Device], count: int) -> list[Device]:
    """The processors only where they can do it, and are asked for or run one process: no machine has eight of them."""
    able = [device for device in devices if estimate.is_supported(spec.parallel, device)]
    return [device for device in able if device.accelerator or count == 1 or len(devices) == 1]


def _conclusions(
    spec: Experiment, known: ParameterCounts, load: Workload, found: list[MemoryEstimate]
) -> Iterator[tuple[str, list[Text | str]]]:
    """The lines under the items."""
    yield "together", [f"{need.memory.total / GB:.1f}" for need in found]
    yield "there is", [f"{need.capacity / GB:.1f}" for need in found]
    if any(need.loading_bytes > need.memory.total for need in found):
        yield "while it is loaded", [f"{need.loading_bytes / GB:.1f}" for need in found]
    yield "fits", [Text("yes", "green") if need.fits else Text("no", "bold red") for need in found]
    if any(need.host_bytes for need in found):
        yield (
            "machine's memory",
            [f"{need.host_bytes * need.processes / spec.parallel.nodes / GB:.0f}" for need in found],
        )
    yield "tokens a pass", [f"{need.micro_batch_tokens:,}" for need in found]
    yield "checkpointing", ["yes" if need.micro_batch.checkpointing else "no" for need in found]
    passed = [
        estimate.micro_batches_per_step(spec, load, need.micro_batch_tokens, need.processes) for need in found
    ]
    yield "passes a step", [str(one) for one in passed]
    steps = estimate.total_steps(spec, load)
    label = "time, at least" if steps else f"{SAMPLE:,} rows, at least"
    yield (
        label,
        [
            _time(spec, known, load, need, one, steps or _sampled(spec))
            for need, one in zip(found, passed, strict=True)
        ],
    )


def _time(
    spec: Experiment, known: ParameterCounts, load: Workload, need: MemoryEstimate, passed: int, steps: int
) -> str:
    if not need.fits:
        return "–"
    flops = steps * estimate.step_flops(spec, known, load, passed) + estimate.reference_flops(
        spec, known, load, steps
    )
    return format_duration(3600 * estimate.compute_hours(flops, need.device, need.processes))


def preset_table(spec: Experiment, devices: list[Device], counts: list[int]) -> RenderableType:
    """The least intrusive preset that fits each kind of device."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "GB", *("1 device" if count == 1 else f"{count} devices" for count in counts)):
        table.add_column(Text(heading), justify="right" if heading == "GB" else "left")
    for device in devices:
        cells = [_preset(spec, device, count) if device.accelerator or count == 1 else "" for count in counts]
        table.add_row(device.name, f"{device.gb:.0f}", *cells)
    return Group(Text("The least intrusive preset that fits", "bold"), table)


def _preset(spec: Experiment, device: Device, count: int) -> str:
    need = estimate.first_fitting_preset(spec, device, count)
    return need.parallel.name if need else "none"


def advice(spec: Experiment, devices: list[Device], counts: list[int]) -> list[str]:
    """What to call in the end, for the smallest device that does; and how the time was told."""
    rate = (
        f"{estimate.UTILIZATION:.0%} of the peak in bfloat16 is assumed"
        if any(device.accelerator for device in devices)
        else ""
    )
    note = [f"Time: {rate}; short steps, slow networks, loading and evaluation come on top."] if rate else []
    for device in [
        *_here(spec, devices),
        *(device for device in devices if device.accelerator or len(devices) == 1),
    ]:
        for count in _tried(spec, device, counts):
            need = estimate.first_fitting_preset(spec, device, count)
            if need:
                where = f"{count} x {device.name} ({device.gb:.0f} GB)"
                said = f"The smallest of these that does: {where}, with parallel={need.parallel.name}"
                return [*note, f"{said} ({need.peak / GB:.1f} GB):", f"    {command(spec, need)}"]
    return [
        *note,
        "No preset fits any of these: take a smaller model, more devices (parallel.processes), or a smaller data.max_length.",
    ]


def _here(spec: Experiment, devices: list[Device]) -> list[Device]:
    """This machine's processors, where they are among others and would do for what was asked."""
    own = [
        device
        for device in _sensible(spec, devices, 1)
        if not device.accelerator and estimate.is_practical(spec, device)
    ]
    return [
        device
        for device in own
        if (need := estimate.estimate_memory(spec, spec.parallel, device, 1))
        and need.fits
        and len(devices) > 1
    ]


def _tried(spec: Experiment, device: Device, counts: list[int]) -> list[int]:
    """As many devices as were asked for; one first, where nobody asked."""
    if spec.parallel.processes or spec.parallel.nodes > 1:
        return counts
    return sorted({1, *counts}) if device.accelerator else [1]


def command(spec: Experiment, need: MemoryEstimate) -> str:
    """The command of this experiment with the preset that fits, as the user wrote the rest."""
    words = [word for word in sys.argv[1:] if word.lstrip("+~").partition("=")[0] not in OURS]
    if Path(sys.argv[0]).name not in (SCRIPT, CONSOLE_COMMAND):
        words = [f"method={spec.method.name}", f"model={spec.model.name}", f"data={spec.data.name}"]
    count = need.processes // spec.parallel.nodes
    several = [f"parallel.processes={count}"] if need.processes > 1 else []
    return shlex.join(
        redact_data([*typed_command().split(), *words, f"parallel={need.parallel.name}", *several])
    )
