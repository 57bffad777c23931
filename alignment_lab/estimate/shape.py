"""A decoder's dimensions and parameter counts, without weights: from a Shape, or from a config.json."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..config import Adapter, Experiment, Model, ModelSource, Parallel, Shape

CONFIG_KEYS = {  # of a config.json, by family
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size",),
}
UNKNOWN_SHAPE_REMEDY = (
    "give a directory with its config.json, or plan with a model of its size, as model=llama-3.1-8b"
)


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a decoder, by module.

    A gated MLP is assumed, so that a GPT-2 comes out a fifth too large.
    """

    layers: int
    linear_per_layer: int  # attention and MLP
    norms_per_layer: int
    embedding: int
    head: int  # 0 where it is tied to the embedding
    output_projection: int  # what a scored token is multiplied with: the head, tied or not
    adapter: int  # 0 where there is none

    @property
    def total(self) -> int:
        """All parameters of the model without an adapter; one more norm precedes the head."""
        per_layer = self.linear_per_layer + self.norms_per_layer
        return self.embedding + self.head + self.layers * per_layer + self.norms_per_layer // 2

    @property
    def linear_total(self) -> int:
        """The linear layers, which every token is multiplied with."""
        return self.layers * self.linear_per_layer

    @property
    def trained(self) -> int:
        """The adapter's parameters where there is one, else all."""
        return self.adapter or self.total


def linear_layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """The linear layers of one decoder layer, by the names that peft matches: (inputs, outputs)."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "q_proj": (shape.hidden, queries),
        "k_proj": (shape.hidden, keys),
        "v_proj": (shape.hidden, keys),
        "o_proj": (queries, shape.hidden),
        "gate_proj": (shape.hidden, shape.intermediate),
        "up_proj": (shape.hidden, shape.intermediate),
        "down_proj": (shape.intermediate, shape.hidden),
    }


def parameter_counts(shape: Shape, parallel: Parallel, *, scores: bool = False) -> ParameterCounts:
    """Of a model of this shape with the adapter of `parallel`.

    With `scores` its head has one output: a reward model.
    """
    head = shape.hidden * (1 if scores else shape.vocabulary)
    return ParameterCounts(
        layers=shape.layers,
        linear_per_layer=sum(inputs * outputs for inputs, outputs in linear_layers(shape).values()),
        norms_per_layer=2 * shape.hidden,
        embedding=shape.vocabulary * shape.hidden,
        head=0 if shape.tied and not scores else head,
        output_projection=head,
        adapter=_adapter_parameters(shape, parallel),
    )


def _adapter_parameters(shape: Shape, parallel: Parallel) -> int:
    """LoRA of rank r has r (inputs + outputs) parameters per matrix; DoRA has one more per output."""
    if parallel.adapter is Adapter.none:
        return 0
    layers = linear_layers(shape)
    targets = [name for name in layers if name in (parallel.targets or layers)] or list(layers)
    magnitudes = 1 if parallel.adapter is Adapter.dora else 0
    return shape.layers * sum(
        parallel.rank * (inputs + outputs) + magnitudes * outputs
        for inputs, outputs in (layers[name] for name in targets)
    )


def experiment_parameters(spec: Experiment) -> ParameterCounts | None:
    """The parameters of an experiment's model, or None where its shape is not known on this machine."""
    shape = model_shape(spec.model)
    return None if shape is None else parameter_counts(shape, spec.parallel, scores=not spec.method.generates)


def model_shape(model: Model) -> Shape | None:
    """The shape of a model: by its directory's config.json, else `model.shape`, else by the Hub's cache."""
    if model.source is ModelSource.hub and model.path:
        local = Path(model.path).expanduser() / "config.json"
        file = local if local.is_file() else None if model.shape else hub_cached_file(model, "config.json")
        if file:
            with suppress(AttributeError, ValueError):
                return shape_from_config(_read_config(file))
    return model.shape


def hub_cached_file(model: Model, name: str) -> Path | None:
    """A file of the model's repository in the Hub's cache on this machine, or None. Uses no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(str(model.path), name, revision=model.revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None  # not a str: the Hub is known not to have the file


def _read_config(file: Path) -> SimpleNamespace:
    config = json.loads(file.read_text(encoding="utf-8"))
    return SimpleNamespace(**config.get("text_config", config))


def shape_from_config(config: Any) -> Shape:
    """The shape that a transformers config, or any object with its attributes, describes.

    Raises AttributeError for a config without such dimensions.
    """
    hidden, heads = _read_dimension(config, "hidden"), _read_dimension(config, "heads", 1)
    kv_heads = _read_dimension(config, "kv_heads", heads)
    return Shape(
        layers=_read_dimension(config, "layers"),
        hidden=hidden,
        intermediate=_read_dimension(config, "intermediate", 4 * hidden),
        heads=heads,
        kv_heads=heads if heads % kv_heads else kv_heads,
        head_dim=_read_dimension(config, "head_dim", max(1, hidden // heads)),
        vocabulary=_read_dimension(config, "vocabulary"),
        tied=bool(getattr(config, "tie_word_embeddings", True)),
    )


def _read_dimension(config: Any, dimension: str, default: int | None = None) -> int:
    """A dimension, under the first of its keys that the config has with a positive number."""
    values = (getattr(config, key, None) for key in CONFIG_KEYS[dimension])
    value = next((value for value in values if isinstance(value, int) and value > 0), default)
    if value is None:
        raise AttributeError(f"the config has no {dimension}: none of {', '.join(CONFIG_KEYS[dimension])}")
    return value
