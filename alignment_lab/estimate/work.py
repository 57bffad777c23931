"""What a run has to compute, and how long that takes. Attention's own products are left out: a few per cent up to some thousand tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Adapter, Experiment
from .devices import Device
from .shape import ParameterCounts


@dataclass(frozen=True)
class Workload:
    """The rows of an experiment, in tokens; `rows` is None where they cannot be counted here."""

    rows: int | None
    tokens_per_row: float  # of a row, its prompt once
    scored_per_row: float  # of these, those whose log-probability is asked
    longest_row: int | None = None  # tokens that the longest row has at most; None where no row was read
    max_step_tokens: int | None = None  # the same of as many of the longest rows as an optimizer step takes
    max_step_scored: int | None = None  # the same of scored tokens


def total_steps(spec: Experiment, load: Workload) -> int | None:
    """Optimizer steps of the run, or None where the rows are not known and no number of steps is set."""
    if spec.training.max_steps > 0:
        return spec.training.max_steps
    per_epoch = steps_per_epoch(spec, load)
    return None if per_epoch is None else max(1, round(per_epoch * spec.training.num_train_epochs))


def steps_per_epoch(spec: Experiment, load: Workload) -> int | None:
    """Optimizer steps that see every row once; the last one may be smaller."""
    return None if load.rows is None else -(-load.rows // spec.training.global_batch)


def micro_batches_per_step(spec: Experiment, load: Workload, tokens: int, processes: int) -> int:
    """Forward passes of each process in a step."""
    return max(1, -(-round(spec.training.global_batch * load.tokens_per_row) // (processes * tokens)))


def step_flops(spec: Experiment, known: ParameterCounts, load: Workload, passed: int = 1) -> float:
    """FLOPs of an optimizer step: 6 a weight and token, 4 where the base is frozen; the head's only for scored tokens.

    A loss that couples the rows of several passes computes them once more beforehand: 2.
    """
    each = 4 if spec.parallel.adapter is not Adapter.none else 6
    each += 2 if spec.method.couples_rows and passed > 1 else 0
    return each * spec.training.global_batch * _once(known, load)


def reference_flops(spec: Experiment, known: ParameterCounts, load: Workload, steps: int) -> float:
    """FLOPs of the reference: a forward pass over the rows that the run sees, once, however many epochs; 0 for a method without."""
    if not spec.method.needs_reference:
        return 0.0
    seen = steps * spec.training.global_batch
    return 2.0 * min(seen, load.rows if load.rows is not None else seen) * _once(known, load)


def _once(known: ParameterCounts, load: Workload) -> float:
    """Weights times tokens of one row."""
    return known.linear_total * load.tokens_per_row + known.output_projection * load.scored_per_row


def compute_hours(flops: float, device: Device, count: int) -> float:
    """How long so many devices take."""
    return flops / (device.flops * (count if device.accelerator else 1)) / 3600
