"""Memory, time and the smallest set-up that does, from a model's shape: no weights, no accelerator, no torch."""

from .devices import DEVICES, GB, SHOWN, UTILISATION, Device, here, named, this_cpu
from .memory import CPU_TOKENS, CUDA_TOKENS, SHARE, STATES, Memory, Need, Plan, activation_bytes, longest_row, needs, plan, settle
from .presets import AUTO, PRESETS, Choice, bearable, chosen, possible, resolve, smallest, with_dials, world
from .shape import UNKNOWN, Parameters, cached_file, from_config, of, parameters, shape_of
from .work import Load, hours, passes, reference_flops, step_flops, steps_of, steps_per_epoch

__all__ = [
    "AUTO",
    "CPU_TOKENS",
    "CUDA_TOKENS",
    "DEVICES",
    "GB",
    "PRESETS",
    "SHARE",
    "SHOWN",
    "STATES",
    "UNKNOWN",
    "UTILISATION",
    "Choice",
    "Device",
    "Load",
    "Memory",
    "Need",
    "Parameters",
    "Plan",
    "activation_bytes",
    "bearable",
    "cached_file",
    "chosen",
    "from_config",
    "here",
    "hours",
    "longest_row",
    "named",
    "needs",
    "of",
    "parameters",
    "passes",
    "plan",
    "possible",
    "reference_flops",
    "resolve",
    "settle",
    "shape_of",
    "smallest",
    "step_flops",
    "steps_of",
    "steps_per_epoch",
    "this_cpu",
    "with_dials",
    "world",
]
