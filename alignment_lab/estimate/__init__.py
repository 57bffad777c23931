"""Memory, time and the presets that fit, from a model's shape; and what keeps a run from starting.

Loads no weights, uses no accelerator and does not import torch.
"""

from .devices import DEVICES, GB, LISTED_DEVICES, UTILIZATION, Device, get_device, local_cpu, local_device
from .memory import MemoryBreakdown, MemoryEstimate, estimate_memory
from .micro_batch import MicroBatchPlan, activation_bytes, choose_micro_batch, plan_micro_batch
from .presets import (
    AUTO,
    PRESETS,
    PresetChoice,
    apply_preset,
    choose_preset,
    first_fitting_preset,
    is_practical,
    is_supported,
    resolve_auto,
    total_processes,
)
from .shape import (
    UNKNOWN_SHAPE_REMEDY,
    ParameterCounts,
    experiment_parameters,
    model_shape,
    parameter_counts,
)
from .work import (
    Workload,
    compute_hours,
    micro_batches_per_step,
    reference_flops,
    step_flops,
    steps_per_epoch,
    total_steps,
)

__all__ = [
    "AUTO",
    "DEVICES",
    "GB",
    "LISTED_DEVICES",
    "PRESETS",
    "UNKNOWN_SHAPE_REMEDY",
    "UTILIZATION",
    "Device",
    "MemoryBreakdown",
    "MemoryEstimate",
    "MicroBatchPlan",
    "ParameterCounts",
    "PresetChoice",
    "Workload",
    "activation_bytes",
    "apply_preset",
    "choose_micro_batch",
    "choose_preset",
    "compute_hours",
    "estimate_memory",
    "experiment_parameters",
    "first_fitting_preset",
    "get_device",
    "is_practical",
    "is_supported",
    "local_cpu",
    "local_device",
    "micro_batches_per_step",
    "model_shape",
    "parameter_counts",
    "plan_micro_batch",
    "reference_flops",
    "resolve_auto",
    "step_flops",
    "steps_per_epoch",
    "total_processes",
    "total_steps",
]
