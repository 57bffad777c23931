"""The training loop: batches, one optimizer step, checkpoints, callbacks. Refuses to know any method's
loss.
"""

from .callbacks import Callback, Hooks
from .context import TrainContext
from .loop import Trainer
from .objective import Objective

__all__ = ["Callback", "Hooks", "Objective", "TrainContext", "Trainer"]
