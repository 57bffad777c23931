"""Loads a saved model with plain transformers and plain peft, and accounts for every weight.

Refuses to know the lab's attention and its methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any

from ...config import Adapter, Parallel, Quantization
from ...models.quantization import disable_bf16_rewrite
from ...runtime.errors import UserError
from ...runtime.files import read_json
from .tensor_files import SAVE_AGAIN, fail_if_any, iter_tensors, tensor_shapes

LOAD_ERRORS = (  # what transformers and peft raise for a folder that they cannot load
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
)


@dataclass(frozen=True)
class LoadOptions:
    """How to load a saved model: what its folder does not say. The defaults fit full weights in float32."""

    base: Path | None = None  # folder of the weights under an adapter; None: as in adapter_config.json
    quantization: Quantization = Quantization.none  # of the base weights, as in training
    compute: Any = "float32"  # what quantized layers compute in: a torch.dtype or its name
    dtype: Any = "float32"  # what all other weights are held in; "auto": as they are saved
    device: str = "cpu"
    trust_remote_code: bool = False

    def to_json(self) -> str:
        """For the command line of another process."""
        named = {
            name: _dtype_name(value)
            for name, value in asdict(self).items()
            if name in ("base", "compute", "dtype") and value is not None
        }
        return dumps({**asdict(self), "quantization": self.quantization.name, **named})

    @staticmethod
    def from_json(text: str) -> LoadOptions:
        """The inverse of `to_json`."""
        fields = loads(text)
        base = Path(fields["base"]) if fields["base"] else None
        return LoadOptions(**{**fields, "base": base, "quantization": Quantization[fields["quantization"]]})


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def load_saved(folder: Path, options: LoadOptions) -> Any:
    """The model in `folder`, or the adapter there on its base.

    Raises UserError for a missing or unexpected weight.
    """
    if not (folder / "adapter_config.json").exists():
        architectures = (read_json(folder / "config.json") or {}).get("architectures") or [""]
        return load_plain(folder, options, score_head=architectures[0].endswith("ForSequenceClassification"))
    return load_adapter(load_base(folder, options), folder)


def load_base(folder: Path, options: LoadOptions) -> Any:
    """The weights under the adapter in `folder`, quantized as `options` says."""
    adapter_config = read_json(folder / "adapter_config.json")
    base = Path(options.base or adapter_config.get("base_model_name_or_path") or "nowhere")
    if not (base / "config.json").is_file():
        raise UserError(
            f"{folder}: the weights under this adapter are not in {base} (no config.json there); "
            "say where they are."
        )
    new = tuple(adapter_config.get("modules_to_save") or ())  # a new head is not part of the base
    return load_plain(base, options, score_head=adapter_config.get("task_type") == "SEQ_CLS", new=new)


def load_adapter(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder`.

    Every saved tensor has a place and keeps the dtype that it was saved in.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with load_errors_as_sentence(folder):
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    saved = tensor_shapes(folder).keys()
    fail_if_any(expected.keys() - saved, folder, "lacks {}")
    fail_if_any(saved - expected.keys(), folder, "holds {}, which the adapter does not have")
    parameters = {weight.data_ptr(): weight for weight in adapted.parameters()}
    for name, tensor in iter_tensors(folder):
        # peft makes a float32 head as a copy of the base's head, which may be held in bfloat16
        if tensor.dtype != expected[name].dtype:
            parameters[expected[name].data_ptr()].data = tensor.to(expected[name].device)
    return adapted


def load_plain(folder: Path, options: LoadOptions, *, score_head: bool, new: tuple[str, ...] = ()) -> Any:
    """A causal model or a reward model from a directory.

    Only weights whose names begin with one of `new` may be missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from ...models.quantization import quantization_config

    auto_class = AutoModelForSequenceClassification if score_head else AutoModelForCausalLM
    more: dict[str, Any] = {"num_labels": 1} if score_head else {}
    quantized = options.quantization is not Quantization.none
    if quantized:
        config = quantization_config(
            Parallel(adapter=Adapter.lora, quantization=options.quantization),
            getattr(torch, _dtype_name(options.compute)),
        )
        more |= {"quantization_config": config, "device_map": {"": options.device}}
    dtype = "auto" if options.dtype == "auto" else getattr(torch, _dtype_name(options.dtype))
    with load_errors_as_sentence(folder):
        model, keys = auto_class.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=options.trust_remote_code, **more
        )
    missing = [name for name in keys["missing_keys"] if not (new and name.startswith(new))]
    fail_if_any(missing, folder, "lacks {}")
    if not new:
        fail_if_any(keys["unexpected_keys"], folder, "holds {}, which the model does not have")
    disable_bf16_rewrite(model)
    return (model if quantized else model.to(options.device)).eval()


@contextmanager
def load_errors_as_sentence(folder: Path, remedy: str = SAVE_AGAIN) -> Iterator[None]:
    """Turn a library's loading error into one sentence."""
    try:
        yield
    except LOAD_ERRORS as error:
        reason = " ".join(f"{'no ' if isinstance(error, KeyError) else ''}{error}".split())
        raise UserError(
            f"{folder}: plain transformers and peft cannot load it ({reason[:300]}); {remedy}."
        ) from error
