"""action=plan: what a run would need and take on various devices.

Uses no weights, no accelerator and no torch.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType

from .. import data, estimate
from ..config import Experiment, Sharding
from ..distributed.environment import settle_environment
from ..distributed.launch import is_run_leader
from ..estimate import DEVICES, GB, Device, MemoryEstimate
from ..runtime.command_line import CONSOLE_COMMAND, SCRIPT, typed_command
from ..runtime.errors import UserError
from ..runtime.redaction import redact_data
from ..runtime.run_directory import RunDirectory
from .plan_tables import experiment_table, memory_table, plausible_devices, preset_table
from .row_counts import describe_labels
from .workload import estimate_workload

DEFAULT_COUNTS = (1, 8)  # devices, where no number is set
REPLACED_KEYS = (  # of the user's command, in the one that is advised
    *("action", "plan.device", "parallel", "parallel.processes"),
    *(f"parallel.{key}" for key in ("sharding", "adapter", "quantization", "offload")),
)


def run_plan(spec: Experiment, run: RunDirectory) -> None:
    """Print the plan and leave no run directory behind."""
    settle_environment()
    try:
        rows = None if spec.data.is_on_hub() else data.load_rows(spec)  # a plan needs no network
        show_plan(spec, rows, Console(quiet=not is_run_leader(spec.parallel)))
    finally:
        run.discard_if_unused()


def show_plan(spec: Experiment, rows: data.Splits | None, console: Console) -> None:
    """Print model, memory, work and the smallest preset that fits; `rows` is None where they cannot be read.

    Raises UserError where the model's shape is unknown.
    """
    devices = planned_devices(spec)
    if spec.parallel.name == estimate.AUTO:
        choice = estimate.choose_preset(spec)
        spec = replace(spec, parallel=choice.parallel)
        _print(choice.reason, console)
    parameters = estimate.experiment_parameters(spec)
    if parameters is None:
        raise UserError(
            f"action=plan: the shape of model={spec.model.name} is not known here; "
            f"{estimate.UNKNOWN_SHAPE_REMEDY}."
        )
    workload, source = estimate_workload(spec, rows)
    _print(experiment_table(spec, parameters, workload, source), console)
    for line in describe_labels(spec, rows.train, rows.train) if rows else ():
        _print(line, console)
    counts = planned_counts(spec)
    for count in counts:
        _print(memory_table(spec, parameters, workload, devices, count), console)
    more_counts = DEFAULT_COUNTS if spec.parallel.processes is None else ()
    _print(preset_table(spec, devices, sorted({1, *counts, *more_counts})), console)
    for line in advice(spec, devices, counts):
        _print(line, console, soft_wrap=True)


def _print(part: RenderableType, console: Console, *, soft_wrap: bool = False) -> None:
    wrap = soft_wrap or isinstance(part, str)
    console.print(part, highlight=False, markup=False, emoji=False, soft_wrap=wrap)


def planned_devices(spec: Experiment) -> list[Device]:
    """`plan.device`, else this machine's accelerator, else an accelerator of each size and this CPU."""
    if spec.plan.device is not None:
        return [estimate.get_device(spec.plan.device)]
    device, _ = estimate.local_device()
    return [device] if device.accelerator else [DEVICES[name] for name in estimate.LISTED_DEVICES]


def planned_counts(spec: Experiment) -> list[int]:
    """How many devices: parallel.processes, else this machine's accelerators, else DEFAULT_COUNTS."""
    parallel, (device, count) = spec.parallel, estimate.local_device()
    uses_this_machine = spec.plan.device is None and device.accelerator
    if parallel.sharding is Sharding.none or parallel.processes or uses_this_machine:
        return [estimate.total_processes(parallel, count)]
    if spec.plan.device == "cpu":
        return [parallel.nodes]
    return [count * parallel.nodes for count in DEFAULT_COUNTS]


def advice(spec: Experiment, devices: list[Device], counts: list[int]) -> list[str]:
    """How the time was estimated; the smallest device that fits with a preset, and the command for it."""
    accelerators = [device for device in devices if device.accelerator]
    note = (
        f"Time: {estimate.UTILIZATION:.0%} of the peak in bfloat16 is assumed; "
        "short steps, slow networks, loading and evaluation add to it."
    )
    lines = [note] if accelerators else []
    candidates = devices if len(devices) == 1 else accelerators
    for device in [*_fitting_cpu(spec, devices), *candidates]:
        for count in _counts_to_try(spec, device, counts):
            need = estimate.first_fitting_preset(spec, device, count)
            if need:
                where = f"{count} x {device.name} ({device.gb:.0f} GB)"
                preset = f"parallel={need.parallel.name} ({need.peak / GB:.1f} GB)"
                return [
                    *lines,
                    f"The smallest that fits: {where}, with {preset}:",
                    f"    {command(spec, need)}",
                ]
    return [
        *lines,
        "No preset fits any of these: take a smaller model, more devices (parallel.processes), or a smaller "
        "data.max_length.",
    ]


def _fitting_cpu(spec: Experiment, devices: list[Device]) -> list[Device]:
    """This machine's CPU, where it is one of several devices, and the experiment is practical on it."""
    if len(devices) == 1:
        return []
    cpus = [device for device in plausible_devices(spec, devices, 1) if not device.accelerator]
    return [
        device
        for device in cpus
        if estimate.is_practical(spec, device)
        and (need := estimate.estimate_memory(spec, spec.parallel, device, 1))
        and need.fits
    ]


def _counts_to_try(spec: Experiment, device: Device, counts: list[int]) -> list[int]:
    """`counts` where their number is set; else one device before them, and one CPU."""
    if spec.parallel.processes or spec.parallel.nodes > 1:
        return counts
    return sorted({1, *counts}) if device.accelerator else [1]


def command(spec: Experiment, need: MemoryEstimate) -> str:
    """The command of this experiment with the preset that fits; the user's own arguments otherwise."""
    arguments = [
        argument for argument in sys.argv[1:] if argument.lstrip("+~").partition("=")[0] not in REPLACED_KEYS
    ]
    if Path(sys.argv[0]).name not in (SCRIPT, CONSOLE_COMMAND):
        arguments = [f"method={spec.method.name}", f"model={spec.model.name}", f"data={spec.data.name}"]
    arguments.append(f"parallel={need.parallel.name}")
    if need.processes > 1:
        arguments.append(f"parallel.processes={need.processes // spec.parallel.nodes}")
    return shlex.join(redact_data([*typed_command().split(), *arguments]))
