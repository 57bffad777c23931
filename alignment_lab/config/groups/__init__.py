"""The settings of every group but the method: their types, defaults and ranges."""

from .data import BadRows, Data, Truncation
from .data_cleaning import Cleaning, Duplicates, Overlap
from .data_source import DataSource, Source
from .evaluation import Eval, GenerateMeasure, Measure, PerplexityMeasure, PreferenceMeasure
from .model import TEMPLATES, Attention, Dtype, Kernels, Model, ModelSource, Shape
from .parallel import Adapter, DeviceType, Parallel, Quantization, Sharding
from .tracking import Tracking
from .training import HubStrategy, OnNonfinite, Optimizer, Scheduler, Training
from .winrate import JudgeKind, LengthPenalty, WinrateMeasure

GROUPS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "parallel": Parallel,
    "training": Training,
    "tracking": Tracking,
    "eval": Eval,
}

__all__ = [
    "GROUPS",
    "TEMPLATES",
    "Adapter",
    "Attention",
    "BadRows",
    "Cleaning",
    "Data",
    "DataSource",
    "DeviceType",
    "Dtype",
    "Duplicates",
    "Eval",
    "GenerateMeasure",
    "HubStrategy",
    "JudgeKind",
    "Kernels",
    "LengthPenalty",
    "Measure",
    "Model",
    "ModelSource",
    "OnNonfinite",
    "Optimizer",
    "Overlap",
    "Parallel",
    "PerplexityMeasure",
    "PreferenceMeasure",
    "Quantization",
    "Scheduler",
    "Shape",
    "Sharding",
    "Source",
    "Tracking",
    "Training",
    "Truncation",
    "WinrateMeasure",
]
