"""In which type a fused operation computes: what autocast would choose, without asking the device."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_dtype(tensor: Tensor) -> torch.dtype:
    """The type of a matrix product of this tensor: autocast's where it is on, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
