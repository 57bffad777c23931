"""What plain transformers and plain peft expect of a saved model's files, told without reading a weight.

Everything here lies on torch's meta device: it costs neither memory nor time, and finds before training that
nobody could load what training would leave.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plain_loading import load_errors_as_sentence
from .tensor_files import fail_if, fail_if_any, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

REMEDY = "train another model, or an adapter of it with parallel=lora"


def check_full_names(model: Any, folder: Path, state: dict[str, Tensor]) -> None:
    """Check that transformers takes `state`, tensors on meta by their names in files, as a whole model.

    `folder` has the config.json that was saved of `model`. Raises UserError.
    """
    with load_errors_as_sentence(folder, REMEDY):
        config = type(model.config).from_pretrained(folder)
        _, keys = type(model).from_pretrained(
            None, config=config, state_dict=state, device_map={"": "meta"}, output_loading_info=True
        )
    fail_if_any(keys["missing_keys"], folder, "would lack {}", REMEDY)
    fail_if_any(keys["unexpected_keys"], folder, "would hold {}, which the model does not have", REMEDY)


def check_adapter_names(model: Any, folder: Path) -> None:
    """Check that the adapter that peft makes by the adapter_config.json in `folder` takes all of its tensors.

    `model` is the adapted model that was saved there. Raises UserError.
    """
    from copy import deepcopy

    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    base = model.get_base_model()
    with load_errors_as_sentence(folder, REMEDY), torch.device("meta"):
        plain = type(base)(deepcopy(base.config))
        adapted = get_peft_model(plain, PeftConfig.from_pretrained(str(folder)))
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    shapes = tensor_shapes(folder)
    fail_if_any(expected.keys() - shapes.keys(), folder, "would lack {}", REMEDY)
    fail_if_any(shapes.keys() - expected.keys(), folder, "would hold {}, which peft does not expect", REMEDY)
    for name, tensor in expected.items():
        fail_if(
            shapes[name] != tuple(tensor.shape),
            folder,
            f"would hold {name} as {list(shapes[name])}, and peft expects {list(tensor.shape)}",
            REMEDY,
        )
