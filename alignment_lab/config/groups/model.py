"""The model group: which weights to start from, and how to load them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ...runtime.files import dangling_link
from ...runtime.paths import CHAT_TEMPLATES
from ..validation import require, require_positive

TEMPLATES = {path.stem: path for path in CHAT_TEMPLATES.glob("*.jinja")}  # shipped chat templates, by name
ModelSource = Enum("ModelSource", ["hub", "embedded", "random"])
Dtype = Enum("Dtype", ["auto", "float32", "bfloat16", "float16"])
Kernels = Enum("Kernels", ["none", "fused"])
Attention = Enum("Attention", ["shared_prefix", "sdpa", "eager", "flash_attention_2"])


@dataclass
class Shape:
    """The dimensions of a decoder, as in its config.json: to estimate it, or to build a random one."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # whether the LM head is the embedding matrix

    def __post_init__(self) -> None:
        sizes = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary")
        require_positive("model.shape", self, *sizes)
        divides = self.heads % self.kv_heads == 0
        require(divides, "model.shape.kv_heads", self.kv_heads, f"must divide the {self.heads} heads.")


@dataclass
class Model:
    """Which weights to start from, and how to load them."""

    name: str = "model"
    source: ModelSource = ModelSource.hub
    path: str | None = None  # a Hub id, or a directory with config.json and safetensors
    revision: str | None = None  # a branch, tag or commit on the Hub
    dtype: Dtype = Dtype.auto  # auto: bfloat16 where the accelerator has it, else float32
    attention: Attention = Attention.shared_prefix  # packed, prompts shared; the others pad
    kernels: Kernels = Kernels.none  # fused: on CUDA, each where it agrees with the stock module
    chat_template: str | None = None  # a shipped name, a .jinja file or a template; null: the tokenizer's own
    trust_remote_code: bool = False
    init_adapter: str | None = (
        None  # a directory with a peft adapter to continue from; it is the reference too
    )
    shape: Shape | None = None  # what the estimate needs where there is no network

    def __post_init__(self) -> None:
        self._check_source()
        self._check_files()

    def _check_source(self) -> None:
        from_hub = self.source is ModelSource.hub
        give_path = "give a Hub id or a directory: model.path=org/name."
        require(not from_hub or bool(self.path), "model.path", self.path, give_path)
        has_none = f"model={self.name} has no path; for a Hub id or a directory add model=hub."
        require(from_hub or not self.path, "model.path", self.path, has_none)
        has_shape = self.source is not ModelSource.random or self.shape is not None
        keep_shape = "random weights need a shape; leave it as it was, or use another model."
        require(has_shape, "model.shape", "null", keep_shape)

    def _check_files(self) -> None:
        template = self.chat_template or "{"
        is_text = "{" in template or template in TEMPLATES
        file = Path() if is_text else Path(os.path.expanduser(template))
        require(
            is_text or os.path.isfile(file),
            "model.chat_template",
            template,
            f"{dangling_link(file) or 'no such file'}; "
            f"give {' or '.join(sorted(TEMPLATES))}, a .jinja file, or a template.",
        )
        has_text = is_text or file.stat().st_size > 0
        remedy = "this file is empty; write a template into it, or choose another."
        require(has_text, "model.chat_template", template, remedy)
        if self.init_adapter is not None:
            _require_holds(
                "model.init_adapter",
                self.init_adapter,
                "adapter_config.json",
                "no adapter is there (a directory with adapter_config.json and safetensors)",
                "give the model/ directory of a LoRA run.",
            )
        path = self.path or ""
        if path[:1] in {".", "/", "~"} or os.path.isdir(path) or os.path.islink(path):
            _require_holds(
                "model.path",
                path,
                "config.json",
                "no model is there (a directory with config.json and safetensors)",
                "give another directory or a Hub id.",
            )


def _require_holds(key: str, path: str, name: str, problem: str, remedy: str) -> None:
    """Raise SpecError unless the file `name` lies in the folder `path`."""
    folder = Path(os.path.expanduser(path))
    problem = dangling_link(folder, name) or problem
    require(os.path.isfile(folder / name), key, path, f"{problem}; {remedy}")
