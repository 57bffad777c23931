"""How gradients are computed and reduced: one process, DDP, FSDP2 and DeepSpeed behind one face, by
accelerate.

Knows no batch and no loss but a scalar.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from ..checkpoints.optimizer_state import DeepSpeedOptimizerState, OptimizerState, TorchOptimizerState
from ..config import Sharding
from ..distributed import ranks
from ..distributed.deepspeed_config import deepspeed_config
from ..distributed.fsdp import reshard_model, shard_model
from ..runtime.errors import UserError
from ..runtime.library_internals import reset_accelerate

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import Experiment


def create_accelerator(spec: Experiment, device: torch.device, dtype: torch.dtype) -> Accelerator:
    """accelerate, told what this experiment wants. Made before the model is loaded, and kept as long as it.

    While it lives, transformers shards what it loads under ZeRO-3. Raises UserError for offloading by one
    process.
    """
    alone = ranks.world_size() == 1  # there is nobody to shard anything with
    if alone and spec.parallel.offload:
        raise UserError(
            "parallel.offload=true: works from two processes on; "
            "use parallel=qlora or parallel=lora on one accelerator."
        )
    reset_accelerate()  # a sweep's cells share a process, and may differ in precision
    ddp = DistributedDataParallelKwargs(find_unused_parameters=False, broadcast_buffers=False)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if dtype is torch.bfloat16 else "no",
        deepspeed_plugin=None if alone else _deepspeed_plugin(spec, device, dtype),
        kwargs_handlers=[ddp],
    )


def _deepspeed_plugin(spec: Experiment, device: torch.device, dtype: torch.dtype) -> Any:
    config = deepspeed_config(
        spec.parallel,
        rows_per_process=max(1, spec.training.global_batch // ranks.world_size()),
        max_grad_norm=spec.training.max_grad_norm,
        bf16=dtype is torch.bfloat16,
    )
    if config is None:
        return None
    from accelerate import DeepSpeedPlugin
    from deepspeed.comm import init_distributed

    # The group that has met
    init_distributed("gloo" if device.type == "cpu" else "nccl", auto_mpi_discovery=False)
    return DeepSpeedPlugin(hf_ds_config=config)


class Backend:
    """A model that is wrapped for its sharding, with its optimizer. Every process calls each method
    together.
    """

    def __init__(
        self, accelerator: Accelerator, model: Any, sharding: Sharding, max_grad_norm: float
    ) -> None:
        self.accelerator, self.model = accelerator, model
        self.sharding, self.max_grad_norm = sharding, max_grad_norm
        self.wrapped: Any = model
        self.optimizer: Any = None
        self.uses_deepspeed = accelerator.state.deepspeed_plugin is not None
        if sharding is Sharding.fsdp:
            shard_model(model)

    def wrap(self, optimizer: torch.optim.Optimizer) -> None:
        """Wrap the model for autocast and for several processes, and the optimizer with it."""
        if self.sharding is Sharding.fsdp:
            # accelerate is to apply autocast alone: it neither places nor wraps the model
            self.wrapped = self.accelerator.prepare_model(
                self.model, device_placement=False, evaluation_mode=True
            )
            self.optimizer = self.accelerator.prepare(optimizer)
        else:
            self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)

    @contextmanager
    def pass_of_step(self, *, is_last: bool) -> Iterator[None]:
        """Around the forward and backward pass of one pack. Gradients are reduced at a step's last pass.

        Where each process holds a part of them, they are reduced at every pass.
        """
        if self.uses_deepspeed:
            self.wrapped.set_gradient_accumulation_boundary(is_boundary=is_last)
        with self.wrapped.no_sync() if self.sharding is Sharding.ddp and not is_last else nullcontext():
            yield
        if self.uses_deepspeed and is_last:
            self.wrapped.step()  # clips and steps; it leaves out a step whose gradient is not finite

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar."""
        self.wrapped.backward(loss) if self.uses_deepspeed else loss.backward()

    def clip_gradients(self) -> float:
        """Clip the gradient; gives its norm over all processes, before clipping."""
        max_norm = self.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), max_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return float(norm)

    def step(self) -> None:
        """Update the weights (DeepSpeed has done so already), and clear the gradient."""
        self.optimizer.step()
        self.wrapped.zero_grad()

    def skip_step(self) -> None:
        """Clear the gradient without updating the weights."""
        self.wrapped.zero_grad()

    def reshard(self) -> None:
        """Free what was gathered: ZeRO-3 prefetches for a pass that may not come, FSDP2's root unit stays
        gathered.
        """
        if self.uses_deepspeed and self.wrapped is not self.model:
            self.wrapped.empty_partition_cache()
        if self.sharding is Sharding.fsdp:
            reshard_model(self.model)

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's state by weight, whole."""
        inner = self.optimizer.optimizer  # of accelerate's wrapper
        return DeepSpeedOptimizerState(inner) if self.uses_deepspeed else TorchOptimizerState(inner)
