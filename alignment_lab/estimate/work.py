"""What a run has to compute, and how long that takes.

Attention scores are left out: a few percent up to some thousand tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Adapter, Experiment
from .devices import Device
from .shape import ParameterCounts


@dataclass(frozen=True)
class Workload:
    """The rows of an experiment, in tokens; `rows` is None where they cannot be counted on this machine."""

    rows: int | None
    tokens_per_row: float  # the prompt once
    scored_per_row: float  # of these, tokens whose log-probability is computed
    longest_row: int | None = None  # upper bound of the tokens of a row; None where no row was read
    max_step_tokens: int | None = None  # the same for as many of the longest rows as an optimizer step takes
    max_step_scored: int | None = None  # the same for their scored tokens


def total_steps(spec: Experiment, workload: Workload) -> int | None:
    """Optimizer steps of the run, or None where the number of rows is unknown and `max_steps` is not set."""
    if spec.training.max_steps > 0:
        return spec.training.max_steps
    per_epoch = steps_per_epoch(spec, workload)
    return None if per_epoch is None else max(1, round(per_epoch * spec.training.num_train_epochs))


def steps_per_epoch(spec: Experiment, workload: Workload) -> int | None:
    """Optimizer steps that see every row once; the last one may be smaller."""
    return None if workload.rows is None else -(-workload.rows // spec.training.global_batch)


def micro_batches_per_step(spec: Experiment, workload: Workload, tokens: int, processes: int) -> int:
    """Forward passes of each process in an optimizer step, with `tokens` tokens each."""
    step_tokens = round(spec.training.global_batch * workload.tokens_per_row)
    return max(1, -(-step_tokens // (processes * tokens)))


def step_flops(
    spec: Experiment, counts: ParameterCounts, workload: Workload, micro_batches: int = 1
) -> float:
    """FLOPs of an optimizer step: 6 per weight and token, 4 where the base is frozen.

    The head's weights count only for scored tokens.

    A loss that couples rows of several micro-batches computes them once more beforehand: 2.
    """
    per_weight = 4 if spec.parallel.adapter is not Adapter.none else 6
    per_weight += 2 if spec.method.couples_rows and micro_batches > 1 else 0
    return per_weight * spec.training.global_batch * _row_products(counts, workload)


def reference_flops(spec: Experiment, counts: ParameterCounts, workload: Workload, steps: int) -> float:
    """FLOPs of the reference: one forward pass over the rows that the run sees, whatever the epochs; 0 "
    "without a reference."""
    if not spec.method.needs_reference:
        return 0.0
    rows = steps * spec.training.global_batch
    rows = rows if workload.rows is None else min(rows, workload.rows)
    return 2.0 * rows * _row_products(counts, workload)


def _row_products(counts: ParameterCounts, workload: Workload) -> float:
    """Multiplications of weights and tokens in a forward pass of one row."""
    return counts.linear_total * workload.tokens_per_row + counts.output_projection * workload.scored_per_row


def compute_hours(flops: float, device: Device, count: int) -> float:
    """Hours that `count` devices take; processors are one device, however many processes."""
    return flops / (device.flops * (count if device.accelerator else 1)) / 3600
