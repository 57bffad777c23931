"""A decoder's dimensions and what they come to in parameters. No weights: a Shape, or what a config.json says."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..config import Adapter, Experiment, Model, ModelSource, Parallel, Shape

NAMES = {  # of a config.json, by family
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
    """How many numbers a decoder holds, by place. A gated MLP is taken for granted, so that a GPT-2 comes out a fifth too large."""

    layers: int
    linear_per_layer: int  # of one layer: attention and MLP
    norms_per_layer: int  # of one layer
    embedding: int
    head: int  # 0 where it is the embedding
    output_projection: int  # what a scored token is linear_total with: the head, tied or not
    adapter: int  # 0 where there is none

    @property
    def total(self) -> int:
        """All of the model's own; one more norm stands before the head."""
        return self.embedding + self.head + self.layers * (self.linear_per_layer + self.norms_per_layer) + self.norms_per_layer // 2

    @property
    def linear_total(self) -> int:
        """What every token is linear_total with."""
        return self.layers * self.linear_per_layer

    @property
    def trained(self) -> int:
        """The adapter's where there is one."""
        return self.adapter or self.total


def linear_layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """The matrices of one layer, by the names that peft looks for: (numbers in, numbers out)."""
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
    """Of a model of this shape with the adapter that is asked for. With `scores` its head has one output: a reward model."""
    head = shape.hidden * (1 if scores else shape.vocabulary)
    return ParameterCounts(
        layers=shape.layers,
        linear_per_layer=sum(inside * outside for inside, outside in linear_layers(shape).values()),
        norms_per_layer=2 * shape.hidden,
        embedding=shape.vocabulary * shape.hidden,
        head=0 if shape.tied and not scores else head,
        output_projection=head,
        adapter=_adapter(shape, parallel),
    )


def _adapter(shape: Shape, parallel: Parallel) -> int:
    """A matrix of rank r beside one of `inside` x `outside` has r (inside + outside) numbers; DoRA adds a length for each output."""
    if parallel.adapter is Adapter.none:
        return 0
    known = linear_layers(shape)
    wanted = [name for name in known if name in (parallel.targets or known)] or list(known)
    extra = 1 if parallel.adapter is Adapter.dora else 0
    sizes = [known[name] for name in wanted]
    return shape.layers * sum(
        parallel.rank * (inside + outside) + extra * outside for inside, outside in sizes
    )


def experiment_parameters(spec: Experiment) -> ParameterCounts | None:
    """The parameters of an experiment's model, or None where its shape is not known here."""
    shape = model_shape(spec.model)
    return None if shape is None else parameter_counts(shape, spec.parallel, scores=not spec.method.generates)


def model_shape(model: Model) -> Shape | None:
    """The shape of a model: of a directory what its config.json says, else the option's, else what the Hub's cache holds; or None."""
    if model.source is ModelSource.hub and model.path:
        local = Path(model.path).expanduser() / "config.json"
        file = local if local.is_file() else None if model.shape else hub_cached_file(model, "config.json")
        if file:
            with suppress(AttributeError, ValueError):
                return shape_from_config(_read(file))
    return model.shape


def hub_cached_file(model: Model, name: str) -> Path | None:
    """A file of the model's repository in the Hub's cache on this machine, or None. Asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(str(model.path), name, revision=model.revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _read(file: Path) -> Any:
    said = json.loads(file.read_text(encoding="utf-8"))
    return SimpleNamespace(**said.get("text_config", said))


def shape_from_config(config: Any) -> Shape:
    """The shape that transformers' config (or its JSON) describes. Raises AttributeError for one that has no such dimensions."""
    hidden, heads = _said(config, "hidden"), _said(config, "heads", 1)
    kv_heads = _said(config, "kv_heads", heads)
    return Shape(
        layers=_said(config, "layers"),
        hidden=hidden,
        intermediate=_said(config, "intermediate", 4 * hidden),
        heads=heads,
        kv_heads=heads if heads % kv_heads else kv_heads,
        head_dim=_said(config, "head_dim", max(1, hidden // heads)),
        vocabulary=_said(config, "vocabulary"),
        tied=bool(getattr(config, "tie_word_embeddings", True)),
    )


def _said(config: Any, ours: str, otherwise: int | None = None) -> int:
    """A dimension by whichever of its names the config has."""
    found = [
        value for name in NAMES[ours] if isinstance(value := getattr(config, name, None), int) and value > 0
    ]
    if not found and otherwise is None:
        raise AttributeError(f"the config names no {ours}: none of {', '.join(NAMES[ours])}")
    return found[0] if found else int(otherwise or 0)
