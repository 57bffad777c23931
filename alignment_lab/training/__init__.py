"""From an experiment to transformers' Trainer: its arguments, the order of rows, one optimizer step, what is logged, and the fit itself."""

from .arguments import arguments
from .fit import fit, save
from .order import GlobalBatches
from .trainer import GlobalBatch, LabTrainer

__all__ = ["GlobalBatch", "GlobalBatches", "LabTrainer", "arguments", "fit", "save"]
