"""A saved model by plain transformers and plain peft, every weight accounted for. Knows no attention and no method of the lab's."""

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
from .files import AGAIN, refuse_names, shapes, tensors

CANNOT = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
)  # what transformers and peft raise of what they cannot load


@dataclass(frozen=True)
class Loading:
    """How to load a saved model: what its folder does not say. Full weights in float32 need nothing of it."""

    base: Path | None = (
        None  # where the weights under an adapter lie; None: where its adapter_config.json says
    )
    quantization: Quantization = Quantization.none  # of those weights, as they were trained on
    compute: Any = "float32"  # what quantized layers compute in: a torch.dtype or its name
    dtype: Any = "float32"  # what all other weights are held in; "auto": as they lie
    device: str = "cpu"
    trust_remote_code: bool = False

    def to_json(self) -> str:
        """For the command line of another process."""
        facts = {
            name: _name(value)
            for name, value in asdict(self).items()
            if name in ("base", "compute", "dtype") and value is not None
        }
        return dumps({**asdict(self), "quantization": self.quantization.name, **facts})

    @staticmethod
    def from_json(text: str) -> Loading:
        """What `to_json` wrote."""
        facts = loads(text)
        base = Path(facts["base"]) if facts["base"] else None
        return Loading(**{**facts, "base": base, "quantization": Quantization[facts["quantization"]]})


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def load(folder: Path, how: Loading) -> Any:
    """The model in `folder`, or the adapter there on its base. Raises UserError where a weight is missing or left over."""
    if not (folder / "adapter_config.json").exists():
        architectures = (read_json(folder / "config.json") or {}).get("architectures") or [""]
        return plain(folder, how, scores=architectures[0].endswith("ForSequenceClassification"))
    return adapted(load_base(folder, how), folder)


def load_base(folder: Path, how: Loading) -> Any:
    """The weights under the adapter in `folder`, quantized as `how` says."""
    settings = read_json(folder / "adapter_config.json")
    base = Path(how.base or settings.get("base_model_name_or_path") or "nowhere")
    if not (base / "config.json").is_file():
        raise UserError(
            f"{folder}: the weights under this adapter are not in {base} (no config.json there); say where they are."
        )
    trained = tuple(settings.get("modules_to_save") or ())  # a new head is no part of the base
    return plain(base, how, scores=settings.get("task_type") == "SEQ_CLS", new=trained)


def adapted(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder`, every tensor of which has its place and the type that it was saved in."""
    from peft import PeftModel, get_peft_model_state_dict

    with _explained(folder):
        found = PeftModel.from_pretrained(model, str(folder)).eval()
    there, wanted = shapes(folder).keys(), get_peft_model_state_dict(found)
    refuse_names(wanted.keys() - there, folder, "lacks {}")
    refuse_names(there - wanted.keys(), folder, "holds {}, which the adapter does not have")
    places = {weight.data_ptr(): weight for weight in found.parameters()}
    for name, tensor in tensors(
        folder
    ):  # a head of float32 was made as a copy of the base's, which may be held in bfloat16
        if tensor.dtype != wanted[name].dtype:
            places[wanted[name].data_ptr()].data = tensor.to(wanted[name].device)
    return found


def plain(folder: Path, how: Loading, *, scores: bool, new: tuple[str, ...] = ()) -> Any:
    """A causal model or a reward model out of a directory; only weights whose names begin with one of `new` may be missing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from ...models.quantization import quantization_config

    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    more: dict[str, Any] = {"num_labels": 1} if scores else {}
    if how.quantization is not Quantization.none:
        settings = quantization_config(
            Parallel(adapter=Adapter.lora, quantization=how.quantization), getattr(torch, _name(how.compute))
        )
        more |= {"quantization_config": settings, "device_map": {"": how.device}}
    dtype = "auto" if how.dtype == "auto" else getattr(torch, _name(how.dtype))
    with _explained(folder):
        model, keys = kind.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=how.trust_remote_code, **more
        )
    refuse_names(
        [name for name in keys["missing_keys"] if not (new and name.startswith(new))], folder, "lacks {}"
    )
    if not new:
        refuse_names(keys["unexpected_keys"], folder, "holds {}, which the model does not have")
    disable_bf16_rewrite(model)
    return (model if how.quantization is not Quantization.none else model.to(how.device)).eval()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What cannot be loaded is one sentence."""
    try:
        yield
    except CANNOT as error:
        reason = " ".join(f"{'no ' if isinstance(error, KeyError) else ''}{error}".split())
        raise UserError(
            f"{folder}: plain transformers and peft cannot load it ({reason[:300]}); {AGAIN}."
        ) from error
