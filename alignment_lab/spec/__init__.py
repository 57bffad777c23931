"""Every setting of an experiment: its type, its default, its range, and which ones cannot stand together.

Knows no torch and no method's mathematics, and of files only whether they exist. `parse` turns what Hydra composed into an `Experiment`
or one sentence.
"""

from .check import SpecError
from .experiment import Action, Experiment, keys, parse, register, to_plain, to_yaml
from .groups import (
    GROUPS,
    TEMPLATES,
    Attention,
    BadRows,
    Data,
    DataSource,
    Device,
    Dtype,
    Eval,
    Model,
    ModelSource,
    Optimizer,
    Parallel,
    Scheduler,
    Shape,
    Tracking,
    Training,
)
from .method import DPO, METHODS, SFT, Format, Method

__all__ = [
    "DPO",
    "GROUPS",
    "METHODS",
    "SFT",
    "TEMPLATES",
    "Action",
    "Attention",
    "BadRows",
    "Data",
    "DataSource",
    "Device",
    "Dtype",
    "Eval",
    "Experiment",
    "Format",
    "Method",
    "Model",
    "ModelSource",
    "Optimizer",
    "Parallel",
    "Scheduler",
    "Shape",
    "SpecError",
    "Tracking",
    "Training",
    "keys",
    "parse",
    "register",
    "to_plain",
    "to_yaml",
]
