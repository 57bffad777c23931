"""Proof that a saved model is complete: a fresh process loads it, and its outputs must be the trained
model's.

This finds a weight that was never gathered (empty), a head that was not saved (new and random), a scale that
was lost (every number changes), before anybody builds on it. Refuses to know runs, methods and data.
"""

from .fresh_process import verify_saved
from .plain_loading import LoadOptions, load_saved
from .plain_names import check_adapter_names, check_full_names
from .probe import max_difference, probe_outputs
from .tensor_files import check_files, tensor_shapes

__all__ = [
    "LoadOptions",
    "check_adapter_names",
    "check_files",
    "check_full_names",
    "load_saved",
    "max_difference",
    "probe_outputs",
    "tensor_shapes",
    "verify_saved",
]
