"""Every setting of an experiment: its type, its default, its range, and which ones cannot stand together.

Knows no file, no torch and no method's mathematics. `parse` turns what Hydra composed into an `Experiment` or one sentence.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from .errors import UserError

Action = Enum("Action", ["train"])
ModelSource = Enum("ModelSource", ["hub", "embedded", "random"])
DataSource = Enum("DataSource", ["hub", "local", "embedded"])
Dtype = Enum("Dtype", ["auto", "float32", "bfloat16", "float16"])
Attention = Enum("Attention", ["sdpa", "eager", "flash_attention_2"])
Device = Enum("Device", ["auto", "cpu", "cuda"])
BadRows = Enum("BadRows", ["error", "drop"])
Optimizer = Enum("Optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor", "rmsprop", "sgd"])
Scheduler = Enum("Scheduler", ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"])
Format = Enum("Format", ["text", "preference"])


class SpecError(UserError):
    """A value out of its range, or two settings that cannot stand together."""


def _require(holds: bool, key: str, value: Any, remedy: str) -> None:
    if not holds:
        raise SpecError(f"{key}={value}: {remedy}")


@dataclass
class Shape:
    """A decoder's dimensions, as in its config.json: enough to plan with, and to build it with random weights."""

    layers: int = 2
    hidden: int = 64
    intermediate: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocabulary: int = 49152
    tied: bool = True

    def __post_init__(self) -> None:
        _require(self.heads % self.kv_heads == 0, "model.shape.kv_heads", self.kv_heads, f"must divide the {self.heads} heads.")


@dataclass
class Model:
    """Which weights to start from, and how to hold them."""

    name: str = "model"
    source: ModelSource = ModelSource.hub
    path: str | None = None  # a Hub id or a directory with config.json and safetensors
    revision: str | None = None  # a Hub branch, tag or commit
    dtype: Dtype = Dtype.auto
    attention: Attention = Attention.sdpa
    chat_template: str | None = None  # null: the tokenizer's own; else a shipped name, a .jinja file, or a template
    trust_remote_code: bool = False
    shape: Shape | None = None  # what planning needs where there is no network

    def __post_init__(self) -> None:
        needs_path = self.source is ModelSource.hub
        _require(not needs_path or bool(self.path), "model.path", self.path, "give a Hub id or a directory: model.path=org/name.")
        _require(
            needs_path or not self.path,
            "model.path",
            self.path,
            f"model={self.name} has no path; for a Hub id or a directory add model=hub.",
        )
        if self.path and (self.path[0] in "./~" or Path(self.path).is_dir()):
            _require(
                Path(self.path, "config.json").expanduser().is_file(),
                "model.path",
                self.path,
                "no model lies there (a directory with config.json and safetensors); give another directory or a Hub id.",
            )


@dataclass
class Data:
    """Which rows to read, how to split them, and how long one may be."""

    name: str = "data"
    source: DataSource = DataSource.hub
    path: str | None = None  # a Hub id, or a file or folder of JSON, JSONL, CSV, Parquet or save_to_disk form
    subset: str | None = None  # the Hub's configuration name
    split: str = "train"
    eval_path: str | None = None  # held-out rows of their own; null: taken from the training rows
    eval_split: str | None = None  # the same, for a split of data.path
    eval_fraction: float = 0.1  # where no held-out rows are named: this share of the prompts
    max_length: int = 1024  # tokens of prompt and completion; a longer completion is cut at its end
    bad_rows: BadRows = BadRows.error  # rows that lack a field: stop and name them, or drop and count them

    def __post_init__(self) -> None:
        _require(0 < self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "must lie between 0 and 1: it is a share.")
        _require(self.max_length >= 8, "data.max_length", self.max_length, "must be at least 8 tokens.")
        named = self.source is not DataSource.embedded
        _require(not named or bool(self.path), "data.path", self.path, "say which rows: data=local data.path=rows.jsonl.")
        _require(named or not self.path, "data.path", self.path, "the embedded data has no path; add data=local for your own file.")
        if self.source is DataSource.local:
            for key, path in (("data.path", self.path), ("data.eval_path", self.eval_path)):
                exists = path is None or Path(path).expanduser().exists()
                _require(exists, key, path, f"no such file or folder (looked from {Path.cwd()}); give a path that exists.")


@dataclass
class Method:
    """What every method has: the data that it needs, whether it needs a reference, and its usual learning rate."""

    format: ClassVar[Format] = Format.text
    needs_reference: ClassVar[bool] = False
    usual_learning_rate: ClassVar[float] = 2e-5

    name: str = "method"


@dataclass
class SFT(Method):
    """Supervised fine-tuning: cross-entropy on the assistant's tokens only."""

    name: str = "sft"


@dataclass
class DPO(Method):
    """Direct Preference Optimization (arXiv:2305.18290); the reference is the initial policy."""

    format: ClassVar[Format] = Format.preference
    needs_reference: ClassVar[bool] = True
    usual_learning_rate: ClassVar[float] = 1e-6

    name: str = "dpo"
    beta: float = 0.1  # strength of the pull towards the reference
    label_smoothing: float = 0.0  # assumed share of flipped labels, in [0, 0.5)

    def __post_init__(self) -> None:
        _require(self.beta > 0, "method.beta", self.beta, "must be above 0: at 0 nothing holds the policy to its reference.")
        _require(
            0 <= self.label_smoothing < 0.5,
            "method.label_smoothing",
            self.label_smoothing,
            "must lie in [0, 0.5): at 0.5 the labels carry no signal.",
        )


@dataclass
class Parallel:
    """Where the run happens."""

    name: str = "single"
    device: Device = Device.auto


@dataclass
class Training:
    """The optimisation. Names are those of transformers' TrainingArguments, but for the two batches."""

    learning_rate: float | None = None  # null: the method's usual one
    num_train_epochs: float = 1.0
    max_steps: int = -1  # above 0 it overrules num_train_epochs
    global_batch: int = 8  # rows per optimizer step, over all processes and accumulation
    micro_batch: int | None = None  # rows per forward pass; null: the largest divisor of global_batch up to 4
    lr_scheduler_type: Scheduler = Scheduler.cosine
    warmup_steps: float = 0.1  # below 1: a share of all steps
    optim: Optimizer = Optimizer.adamw_torch
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    seed: int = 42
    logging_steps: int = 1
    eval_steps: int | None = None  # null: before and after only
    save_steps: int | None = None  # null: no checkpoint on the way
    save_total_limit: int = 2

    def __post_init__(self) -> None:
        rate = self.learning_rate
        _require(rate is None or rate > 0, "training.learning_rate", rate, "must be above 0, or null for the method's usual one.")
        _require(self.num_train_epochs > 0, "training.num_train_epochs", self.num_train_epochs, "must be above 0.")
        _require(
            self.max_steps == -1 or self.max_steps > 0, "training.max_steps", self.max_steps, "must be above 0, or -1 for whole epochs."
        )
        _require(
            self.warmup_steps >= 0, "training.warmup_steps", self.warmup_steps, "must be 0 or more; below 1 it is a share of all steps."
        )
        for key in ("global_batch", "micro_batch", "logging_steps", "eval_steps", "save_steps", "save_total_limit"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"training.{key}", value, "must be above 0.")
        for key in ("weight_decay", "max_grad_norm", "seed"):
            _require(getattr(self, key) >= 0, f"training.{key}", getattr(self, key), "must be 0 or more.")
        if self.micro_batch is None:
            self.micro_batch = max(size for size in range(1, 5) if self.global_batch % size == 0)
        _require(
            self.global_batch % self.micro_batch == 0,
            "training.micro_batch",
            self.micro_batch,
            f"must divide training.global_batch={self.global_batch}: choose one of {_divisors(self.global_batch)}.",
        )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


@dataclass
class Tracking:
    """Who is told of the run, besides metrics.jsonl and tensorboard."""

    name: str = "local"
    wandb: bool = False
    project: str = "alignment_lab"
    group: str | None = None  # null: the sweep's name, where there is one
    tags: list[str] = field(default_factory=list)


@dataclass
class Eval:
    """What is measured before and after."""

    rows: int = 64  # held-out rows whose loss and preference are scored; 0: none
    generations: int = 64  # held-out prompts that are answered; 0: none
    max_new_tokens: int = 64
    batch: int = 32  # prompts answered at once

    def __post_init__(self) -> None:
        for key in ("rows", "generations"):
            _require(getattr(self, key) >= 0, f"eval.{key}", getattr(self, key), "must be 0 or more.")
        for key in ("max_new_tokens", "batch"):
            _require(getattr(self, key) > 0, f"eval.{key}", getattr(self, key), "must be above 0.")


@dataclass
class Experiment:
    """One experiment, whole."""

    name: str = "${method.name}-${model.name}"
    action: Action = Action.train
    beta: float | None = None  # null: the method's own; set, it goes to every method that has one
    model: Model = MISSING
    data: Data = MISSING
    method: Method = MISSING
    parallel: Parallel = MISSING
    training: Training = MISSING
    tracking: Tracking = MISSING
    eval: Eval = MISSING

    def __post_init__(self) -> None:
        _require("/" not in self.name and self.name not in ("", ".", ".."), "name", self.name, "it names a directory: leave out '/'.")
        if self.training.learning_rate is None:
            self.training.learning_rate = self.method.usual_learning_rate
        _check_pairs(self)

    @property
    def run_id(self) -> str:
        """Twelve hex digits from all that can change a number: the same experiment has the same id wherever it runs."""
        facts = to_plain(self)
        for key in ("name", "tracking"):
            del facts[key]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


METHODS: dict[str, type[Method]] = {"sft": SFT, "dpo": DPO}

GROUPS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "parallel": Parallel,
    "training": Training,
    "tracking": Tracking,
    "eval": Eval,
}


def _check_pairs(spec: Experiment) -> None:
    """Settings that are fine alone and wrong together."""
    cpu = spec.parallel.device is Device.cpu
    _require(
        not (cpu and spec.model.attention is Attention.flash_attention_2),
        "model.attention",
        "flash_attention_2",
        "needs CUDA, and parallel.device=cpu; use model.attention=sdpa.",
    )
    _require(
        spec.model.dtype is not Dtype.float16,
        "model.dtype",
        "float16",
        "full training in float16 overflows; use bfloat16, or float32 where there is no bf16.",
    )
    _require(
        spec.training.eval_steps is None or spec.eval.rows > 0,
        "training.eval_steps",
        spec.training.eval_steps,
        "there is nothing to evaluate while eval.rows=0; set eval.rows, or training.eval_steps=null.",
    )


def keys() -> list[str]:
    """Every dotted key that an experiment can have, whatever its groups."""
    flat = _flatten(OmegaConf.structured(Experiment), "")
    for group, schema in [*GROUPS.items(), *(("method", schema) for schema in METHODS.values())]:
        flat += _flatten(OmegaConf.structured(schema), f"{group}.")
    flat += _flatten(OmegaConf.structured(Shape), "model.shape.")
    return sorted(set(flat))


def _flatten(node: DictConfig, prefix: str) -> list[str]:
    flat = []
    for key in map(str, node):
        child = node._get_node(key)
        flat += [f"{prefix}{key}"] + (_flatten(child, f"{prefix}{key}.") if isinstance(child, DictConfig) else [])
    return flat


def register() -> None:
    """Make every schema known to Hydra, under `schema/` so that only real options are listed to users."""
    store = ConfigStore.instance()
    store.store(group="schema", name="experiment", node=Experiment)
    for name, schema in METHODS.items():
        store.store(group="schema/method", name=name, node=schema)
    for name, schema in GROUPS.items():
        store.store(group="schema", name=name, node=schema)


def parse(config: DictConfig) -> Experiment:
    """The experiment that Hydra composed, checked.

    Raises SpecError with one sentence for a value out of range, a bad pair, or a `beta` that the method does not have;
    OmegaConf's own errors for a key that does not exist or a value of another type.
    """
    name = config.method.name
    _require(name in METHODS, "method.name", name, f"it says which method this is: leave it as it was, one of {', '.join(METHODS)}.")
    typed = OmegaConf.structured(Experiment)
    typed.method = OmegaConf.structured(METHODS[name])
    typed.merge_with(OmegaConf.to_container(config))  # as plain data: what `+key=value` slipped in is no key here
    if typed.beta is not None:
        if "beta" not in typed.method:
            raise SpecError(f"beta={typed.beta}: method={typed.method.name} has no beta; leave it out, or use one of: {_with_beta()}.")
        typed.method.beta, typed.beta = typed.beta, None
    spec = OmegaConf.to_object(typed)
    assert isinstance(spec, Experiment)
    return spec


def _with_beta() -> str:
    return ", ".join(name for name, schema in METHODS.items() if any(f.name == "beta" for f in fields(schema)))


def to_plain(spec: Experiment) -> dict[str, Any]:
    """The experiment as plain dictionaries, lists, strings and numbers; enums by name."""
    plain = OmegaConf.to_container(OmegaConf.structured(spec), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_yaml(spec: Experiment) -> str:
    """spec.yaml: composes by itself with `--config-path RUN --config-name spec`."""
    defaults = ["/schema/experiment@_here_", f"/schema/method/{spec.method.name}@method", {"hydra": "lab"}, "_self_"]
    header = f"# {spec.name}, id {spec.run_id}. Again: python train.py --config-path RUN --config-name spec\n"
    return header + OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults, **to_plain(spec)}))
