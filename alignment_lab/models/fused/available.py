"""Whether Triton's kernels run here."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch


@cache
def has_triton(device: torch.device) -> bool:
    """On CUDA with Triton installed; on a processor in Triton's interpreter alone, which is for tests."""
    if find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
