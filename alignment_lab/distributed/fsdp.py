"""Shards a model in place with PyTorch's FSDP2.

Knows modules, not what they compute. Refuses a model that does not name its decoder layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..runtime.errors import UserError
from ..runtime.library_internals import decoder_layer_classes, mark_as_fsdp_managed

if TYPE_CHECKING:
    from torch.nn import Module


def shard_model(model: Any) -> None:
    """Shard the model in place: each decoder layer is a unit, and the rest of the model another.

    A unit is gathered for its forward and backward and freed in between. Weights keep their dtype and
    autocast casts them, as on one device, so that the numbers are the same.
    """
    from torch.distributed.fsdp import fully_shard

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer_classes = decoder_layer_classes(base)
    layers = [module for module in base.modules() if type(module).__name__ in layer_classes]
    if not layers:
        raise UserError(
            f"parallel.sharding=fsdp: {type(base).__name__} does not say what its layers are; "
            "use parallel=zero3."
        )
    for layer in layers:
        fully_shard(layer)
    fully_shard(base, reshard_after_forward=False)
    mark_as_fsdp_managed(base)


def reshard_model(model: Module) -> None:
    """Shard again what FSDP2 left gathered after a forward."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
