"""What an optimizer remembers of each weight, whole, by the weight's name: however it is cut, any number of
processes can go on from it.

Written in safetensors, a few GB a file, tensor by tensor: no process ever holds all of it besides what it
trains with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..distributed import ranks
from ..runtime.errors import RunError
from ..runtime.library_internals import relink_optimizer_states

FILE_BYTES = 4 * 2**30  # bytes of a file
MASTER = (
    "master"  # the float32 copy of a 16-bit weight, beside the optimizer's own exp_avg, exp_avg_sq, step, ...
)
StateDict = dict[str, Any]  # of one weight: tensors of its shape or of another, and plain numbers


class OptimizerState(Protocol):
    """Where an optimizer keeps what it remembers. Every process must ask together."""

    def get(self, weight: Any) -> StateDict:
        """All of it, whole."""

    def put(self, weight: Any, values: StateDict) -> None:
        """This process's part of it."""


def save_optimizer(states: OptimizerState, model: Any, folder: Path) -> StateDict:
    """Write the tensors into `folder`; returns the plain numbers by entry. Raises RunError where one is not
    finite.
    """
    numbers: StateDict = {}
    part: dict[str, Tensor] = {}
    files = size = 0
    for name, weight in trainable_parameters(model):
        for key, value in states.get(weight).items():
            if not isinstance(value, Tensor):
                numbers[f"{name}/{key}"] = value
            elif ranks.is_main_process():
                require_finite(f"{key} of {name}", value)
                part[f"{name}/{key}"] = value.detach().cpu().contiguous()
                size += value.nbytes
        if size > FILE_BYTES:
            _write(folder, files := files + 1, part)
            part, size = {}, 0
    _write(folder, files + 1, part)
    return numbers


def load_optimizer(
    states: OptimizerState, model: Any, folder: Path, weights: dict[str, Tensor], numbers: StateDict
) -> None:
    """Give every weight of `model` what `save` wrote of it; `weights` are the whole ones. Raises RunError
    where some belong to none.
    """
    found: dict[str, StateDict] = {}
    for entry, value in [*_read(folder), *numbers.items()]:
        name, _, key = entry.rpartition("/")
        found.setdefault(name, {})[key] = value
    for name, weight in trainable_parameters(model):
        kept = {key: value() if callable(value) else value for key, value in found.pop(name, {}).items()}
        states.put(weight, {MASTER: weights[name], **kept})
    if found:
        raise RunError(
            f"{folder}: the optimizer's state is of weights that this model has not, "
            f"{next(iter(found))} for one."
        )


def require_finite(what: str, tensor: Tensor) -> None:
    """Raise RunError where a number is none: a checkpoint must be worth going on from."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise RunError(
            f"{what} is not finite: nothing was saved; "
            "lower training.learning_rate, and go on from the checkpoint before."
        )


def trainable_parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """What is trained, by name, in one order on every process."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _write(folder: Path, number: int, part: dict[str, Tensor]) -> None:
    if part:
        save_file(part, folder / f"optimizer-{number:05}.safetensors")


def _read(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every entry with the function that reads it."""
    for file in sorted(folder.glob("optimizer-*.safetensors")):
        opened = safe_open(file, "pt")
        for entry in opened.keys():  # noqa: SIM118 (it is no dictionary)
            yield entry, lambda opened=opened, entry=entry: opened.get_tensor(entry)


class TorchOptimizerState:
    """A torch optimizer; its tensors are whole, or FSDP2's."""

    def __init__(self, optimizer: Any) -> None:
        self.state, self.fused = optimizer.state, bool(optimizer.defaults.get("fused"))

    def get(self, weight: Any) -> StateDict:
        """All of it, whole."""
        return {
            key: value.full_tensor() if hasattr(value, "full_tensor") else value
            for key, value in self.state.get(weight, {}).items()
        }

    def put(self, weight: Any, values: StateDict) -> None:
        """The weight too, as it is in float32 where that was kept."""
        with torch.no_grad():
            weight.copy_(_cut_as(weight, values.pop(MASTER)))
        if values:
            self.state[weight] = {key: self._placed(weight, value) for key, value in values.items()}

    def _placed(self, weight: Any, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.shape == weight.shape:
            return _cut_as(weight, value)
        # torch counts steps on the processor, fused kernels do not
        return value.to(weight.device) if value.ndim or self.fused else value


def _cut_as(weight: Any, value: Tensor) -> Any:
    """A whole tensor where `weight` is, and cut as it is."""
    if not hasattr(weight, "device_mesh"):
        return value.to(weight.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
    )


class DeepSpeedOptimizerState:
    """DeepSpeed's optimizer of any stage: a torch one over flat tensors, of which each process has its
    part.
    """

    def __init__(self, optimizer: Any) -> None:
        self.zero, self.inner = optimizer, optimizer.optimizer
        self.cut = hasattr(optimizer, "fp32_partitioned_groups_flat")  # stage 3 cuts the weights too
        self.flats = (
            optimizer.fp32_partitioned_groups_flat if self.cut else optimizer.single_partition_of_fp32_groups
        )
        self._link()

    def get(self, weight: Any) -> StateDict:
        """All of it, whole, with the float32 weight of a 16-bit one."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state = self.inner.state.get(self.flats[0], {})
        whole = {
            key
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == self.flats[0].shape
        }
        common = {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in state.items()
            if key not in whole
        }
        found = {key: safe_get_full_optimizer_state(weight, key) for key in sorted(whole)} | common
        return found if weight.dtype is torch.float32 else {MASTER: safe_get_full_fp32_param(weight), **found}

    def put(self, weight: Any, values: StateDict) -> None:
        """The weight, its float32 copy, and what is remembered of it."""
        from deepspeed import zero
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
        from deepspeed.utils.tensor_fragment import safe_set_local_fp32_param, safe_set_local_optimizer_state

        master = values.pop(MASTER).to(self.flats[0].device)
        with torch.no_grad(), zero.GatheredParameters([weight], modifier_rank=0, enabled=self.cut):
            weight.copy_(master)
        self._prepare(values, weight)
        whole = {key: value for key, value in values.items() if isinstance(value, Tensor) and value.ndim}
        if self.cut:
            safe_set_local_fp32_param(weight, _piece(weight, master))
            for key, value in whole.items():
                safe_set_local_optimizer_state(weight, _piece(weight, value), key)
        else:
            safe_set_full_fp32_param(weight, master.float())
            for key, value in whole.items():
                safe_set_full_optimizer_state(weight, value, key)

    def _prepare(self, values: StateDict, weight: Any) -> None:
        """Room for what is remembered: torch makes it at the first step only."""
        if not values or self.inner.state.get(self.flats[0]):
            return
        fused = bool(self.inner.defaults.get("fused"))
        for flat in self.flats:
            for key, value in values.items():
                if not isinstance(value, Tensor):
                    self.inner.state[flat][key] = value
                elif value.ndim:
                    self.inner.state[flat][key] = torch.zeros_like(flat)
                else:
                    self.inner.state[flat][key] = value.clone().to(flat.device if fused else "cpu")
        self._link()

    def _link(self) -> None:
        """Stages 1 and 2 look up a weight's part by way of the weight; DeepSpeed links those of the first
        group of weights only.
        """
        if not self.cut and all(self.inner.state.get(flat) for flat in self.flats):
            relink_optimizer_states(self.zero)


def _piece(weight: Any, value: Tensor) -> Tensor:
    """This process's part of a whole tensor, as ZeRO-3 cuts it: even, the last one filled up."""
    size = weight.ds_tensor.numel()
    part = value.flatten()[size * ranks.rank() : size * (ranks.rank() + 1)]
    return torch.nn.functional.pad(part, (0, size - part.numel()))
