"""What an experiment is made of besides its settings: rows, weights, tokenizer; and whether they are still
what a run was trained on.

A setting names a file, and the file may change under its name. Refuses to know how a run trains.
"""

from .adapter_base import check_adapter_base, recorded_weights, weights_in
from .changes import find_changes, finished_elsewhere, refusal
from .files import FileDigests, read_files

__all__ = [
    "FileDigests",
    "check_adapter_base",
    "find_changes",
    "finished_elsewhere",
    "read_files",
    "recorded_weights",
    "refusal",
    "weights_in",
]
