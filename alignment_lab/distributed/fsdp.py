"""Three dials (sharding, adapter, quantization) turned into what DeepSpeed, FSDP2, peft and bitsandbytes are given.

Everything is derived from the experiment, so that no number is stated twice. Also the one way to see a sharded model whole.
"""

from __future__ import annotations

from typing import Any

from ..runtime.errors import UserError
from ..runtime.library_internals import decoder_layer_classes, mark_as_fsdp_managed


def shard_model(model: Any) -> None:
    """FSDP2 in place: each decoder layer is a unit, and what is left another. Gathered for forward and backward, freed in between.

    Weights keep their type and autocast casts them, as on one device, so that the numbers are the same.
    """
    from torch.distributed.fsdp import fully_shard

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = decoder_layer_classes(plain)
    layers = [module for module in plain.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"parallel.sharding=fsdp: {type(plain).__name__} does not say what its layers are; use parallel=zero3."
        )
    for layer in layers:
        fully_shard(layer)
    fully_shard(plain, reshard_after_forward=False)
    mark_as_fsdp_managed(plain)


def reshard_model(model: Any) -> None:
    """Cut again what FSDP2 left gathered."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
