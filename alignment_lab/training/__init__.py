"""From an experiment to transformers' Trainer: its arguments, the order of rows, one optimizer step, what is logged, and the fit itself."""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):  # it prints WANDB_MODE, whether anybody uses wandb or not
    import transformers.integrations.integration_utils  # noqa: F401

from .arguments import arguments
from .fit import fit, save
from .sampler import GlobalBatchSampler
from .trainer import GlobalBatch, LabTrainer

__all__ = ["GlobalBatch", "GlobalBatchSampler", "LabTrainer", "arguments", "fit", "save"]
