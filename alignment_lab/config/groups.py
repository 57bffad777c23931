"""The settings of every group but the method: their types, defaults and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ..runtime.paths import CHAT_TEMPLATES
from .validation import require

TEMPLATES = {path.stem: path for path in CHAT_TEMPLATES.glob("*.jinja")}  # shipped, by name
ModelSource = Enum("ModelSource", ["hub", "embedded", "random"])
DataSource = Enum("DataSource", ["hub", "local", "embedded"])
Dtype = Enum("Dtype", ["auto", "float32", "bfloat16", "float16"])
Attention = Enum("Attention", ["shared_prefix", "sdpa", "eager", "flash_attention_2"])
DeviceType = Enum("Device", ["auto", "cpu", "cuda"])
Sharding = Enum("Sharding", ["none", "ddp", "zero1", "zero2", "zero3", "fsdp"])
Adapter = Enum("Adapter", ["none", "lora", "dora", "rslora"])
Quantization = Enum("Quantization", ["none", "nf4", "int8"])
BadRows = Enum("BadRows", ["error", "drop"])
Optimizer = Enum("Optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor", "rmsprop", "sgd"])
Direction = Enum("Direction", ["minimize", "maximize"])
OnNonfinite = Enum("OnNonfinite", ["stop", "skip"])
Scheduler = Enum(
    "Scheduler", ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"]
)


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
        for key in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary"):
            require(getattr(self, key) > 0, f"model.shape.{key}", getattr(self, key), "must be above 0.")
        require(
            self.heads % self.kv_heads == 0,
            "model.shape.kv_heads",
            self.kv_heads,
            f"must divide the {self.heads} heads.",
        )


@dataclass
class Model:
    """Which weights to start from, and how to hold them."""

    name: str = "model"
    source: ModelSource = ModelSource.hub
    path: str | None = None  # a Hub id or a directory with config.json and safetensors
    revision: str | None = None  # a Hub branch, tag or commit
    dtype: Dtype = Dtype.auto
    attention: Attention = Attention.shared_prefix  # packed, prompts shared; any other pads
    chat_template: str | None = (
        None  # null: the tokenizer's own; else a shipped name, a .jinja file, or a template
    )
    trust_remote_code: bool = False
    init_adapter: str | None = None  # a directory with a peft adapter to go on from; it is the reference too
    shape: Shape | None = None  # what planning needs where there is no network

    def __post_init__(self) -> None:
        needs_path = self.source is ModelSource.hub
        require(
            not needs_path or bool(self.path),
            "model.path",
            self.path,
            "give a Hub id or a directory: model.path=org/name.",
        )
        require(
            needs_path or not self.path,
            "model.path",
            self.path,
            f"model={self.name} has no path; for a Hub id or a directory add model=hub.",
        )
        shaped = self.source is not ModelSource.random or self.shape is not None
        require(
            shaped,
            "model.shape",
            "null",
            "random weights need a shape; leave it as it was, or use another model.",
        )
        template = self.chat_template or "{"
        require(
            "{" in template or template in TEMPLATES or Path(template).expanduser().is_file(),
            "model.chat_template",
            template,
            f"no such file; give {' or '.join(sorted(TEMPLATES))}, a .jinja file, or a template.",
        )
        if self.init_adapter is not None:
            require(
                Path(self.init_adapter, "adapter_config.json").expanduser().is_file(),
                "model.init_adapter",
                self.init_adapter,
                "no adapter lies there (a directory with adapter_config.json and safetensors); give the model/ folder of a LoRA run.",
            )
        if self.path and (self.path[0] in "./~" or Path(self.path).is_dir()):
            require(
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
    streaming: bool = False  # read only as many rows, in their order, as training.max_steps can see; nothing is fetched whole
    bad_rows: BadRows = BadRows.error  # rows that lack a field: stop and name them, or drop and count them

    def __post_init__(self) -> None:
        require(
            0 < self.eval_fraction < 1,
            "data.eval_fraction",
            self.eval_fraction,
            "must lie between 0 and 1: it is a share.",
        )
        require(self.max_length >= 8, "data.max_length", self.max_length, "must be at least 8 tokens.")
        named = self.source is not DataSource.embedded
        require(
            not named or bool(self.path),
            "data.path",
            self.path,
            "say which rows: data=local data.path=rows.jsonl.",
        )
        require(
            named or not self.path,
            "data.path",
            self.path,
            "the embedded data has no path; add data=local for your own file.",
        )
        require(
            named or not self.streaming,
            "data.streaming",
            "true",
            "the embedded data is here and small; leave it out, or use data=hub.",
        )
        require(
            not self.eval_path or self.source is DataSource.local,
            "data.eval_path",
            self.eval_path,
            "only data=local reads held-out rows from a file; of the Hub name a split with data.eval_split.",
        )
        require(
            not self.eval_split or self.source is not DataSource.embedded,
            "data.eval_split",
            self.eval_split,
            "the embedded data has held-out rows of its own; leave it out, or use data=hub.",
        )
        if self.source is DataSource.local:
            for key, path in (("data.path", self.path), ("data.eval_path", self.eval_path)):
                exists = path is None or Path(path).expanduser().exists()
                require(
                    exists,
                    key,
                    path,
                    f"no such file or folder (looked from {Path.cwd()}); give a path that exists.",
                )


@dataclass
class Parallel:
    """Where the run happens, and how weights are spread over processes, adapted and stored: three dials."""

    name: str = "single"
    device: DeviceType = DeviceType.auto
    processes: int | None = None  # on each machine; null: one for each accelerator, one on a CPU
    nodes: int = 1  # machines
    sharding: Sharding = (
        Sharding.none
    )  # none is one process; ddp copies the model; zero1-3 and fsdp cut what it is trained with
    offload: bool = False  # zero3: optimizer and weights wait in the machine's memory
    adapter: Adapter = Adapter.none  # none trains every weight
    rank: int = 16  # of the adapter
    alpha: int | None = None  # its scale; null: twice the rank
    targets: list[str] | None = None  # the layers that get one; null: every linear layer but the head
    quantization: Quantization = Quantization.none  # of the weights under the adapter

    def __post_init__(self) -> None:
        for key in ("processes", "nodes", "rank", "alpha"):
            value = getattr(self, key)
            require(value is None or value > 0, f"parallel.{key}", value, "must be above 0.")
        several = (self.processes or 1) * self.nodes > 1
        wanted = f"{self.nodes} nodes" if self.nodes > 1 else f"{self.processes} processes"
        require(
            self.sharding is not Sharding.none or not several,
            "parallel.sharding",
            "none",
            f"is one process, and {wanted} are asked for; use parallel=ddp, zero2, zero3 or fsdp.",
        )
        _check_dials(self)


def _check_dials(parallel: Parallel) -> None:
    """Dials that are fine alone and wrong together: each with the reason and the way out."""
    sharding, quantization, adapter = parallel.sharding, parallel.quantization, parallel.adapter
    require(
        quantization is Quantization.none or adapter is not Adapter.none,
        "parallel.quantization",
        quantization.name,
        "quantized weights cannot be trained themselves; add an adapter: parallel.adapter=lora, or parallel=qlora.",
    )
    require(
        quantization is Quantization.none or sharding is not Sharding.zero3,
        "parallel.quantization",
        quantization.name,
        "ZeRO-3 cannot cut quantized weights; use parallel=fsdp_qlora to cut them, or parallel=zero2_qlora where they fit whole.",
    )
    require(
        quantization is not Quantization.int8 or sharding is not Sharding.fsdp,
        "parallel.quantization",
        "int8",
        "FSDP cannot cut 8-bit weights; use parallel=fsdp_qlora, which stores 4 bits.",
    )
    require(
        quantization is not Quantization.int8 or adapter is not Adapter.dora,
        "parallel.adapter",
        "dora",
        "peft's DoRA cannot read 8-bit weights; use parallel.adapter=lora, or parallel.quantization=nf4.",
    )
    require(
        quantization is not Quantization.nf4
        or sharding is not Sharding.fsdp
        or parallel.device is not DeviceType.cpu,
        "parallel.quantization",
        "nf4",
        "4-bit weights are cut by FSDP only on accelerators; on a CPU use parallel=qlora.",
    )
    require(
        not parallel.offload or sharding is Sharding.zero3,
        "parallel.offload",
        "true",
        "only ZeRO-3 keeps weights in the machine's memory; use parallel=zero3_offload.",
    )
    require(
        not parallel.offload or parallel.device is not DeviceType.cpu,
        "parallel.offload",
        "true",
        "there is no accelerator to take weights from on a CPU; use parallel=zero3.",
    )


@dataclass
class Training:
    """The optimization. Names are those of transformers' TrainingArguments, but for the two batches."""

    learning_rate: float | None = None  # null: the method's usual one
    num_train_epochs: float = 1.0
    max_steps: int = -1  # above 0 it overrules num_train_epochs
    global_batch: int = 8  # rows per optimizer step, over all processes and accumulation
    micro_tokens: int | None = None  # tokens per forward pass; null: by device and memory. Changes no loss
    lr_scheduler_type: Scheduler = Scheduler.cosine
    warmup_steps: float = 0.1  # below 1: a share of all steps
    optim: Optimizer = Optimizer.adamw_torch_fused
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool | None = None  # null: where the estimate says that memory would not do
    seed: int = 42
    logging_steps: int = 1
    eval_steps: int | None = None  # null: before and after only
    save_steps: int | None = None  # null: no checkpoint on the way
    save_total_limit: int = 2
    dataloader_num_workers: int = (
        0  # processes that lay out the next batches meanwhile; 0: the one that trains does it in between
    )
    on_nonfinite: OnNonfinite = (
        OnNonfinite.stop
    )  # a loss or gradient that is no number: no step is taken, and the run ends or goes on
    max_nonfinite: int = 5  # such steps in a row, where it goes on
    watchdog_minutes: float | None = (
        30.0  # without any progress: stacks are written down, and the run ends; null: never
    )

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(
            rate is None or 0 < rate < math.inf,
            "training.learning_rate",
            rate,
            "must be above 0, or null for the method's usual one.",
        )
        require(
            0 < self.num_train_epochs < math.inf,
            "training.num_train_epochs",
            self.num_train_epochs,
            "must be above 0, and finite.",
        )
        require(
            self.max_steps == -1 or self.max_steps > 0,
            "training.max_steps",
            self.max_steps,
            "must be above 0, or -1 for whole epochs.",
        )
        require(
            0 <= self.warmup_steps < math.inf,
            "training.warmup_steps",
            self.warmup_steps,
            "must be 0 or more; below 1 it is a share of all steps.",
        )
        for key in (
            "global_batch",
            "micro_tokens",
            "logging_steps",
            "eval_steps",
            "save_steps",
            "save_total_limit",
        ):
            value = getattr(self, key)
            require(value is None or value > 0, f"training.{key}", value, "must be above 0.")
        minutes = self.watchdog_minutes
        require(
            minutes is None or minutes > 0,
            "training.watchdog_minutes",
            minutes,
            "must be above 0, or null for no watchdog.",
        )
        require(self.max_nonfinite >= 0, "training.max_nonfinite", self.max_nonfinite, "must be 0 or more.")
        require(
            self.weight_decay < math.inf,
            "training.weight_decay",
            self.weight_decay,
            "must be 0 or more, and finite.",
        )
        require(
            self.seed < 2**32, "training.seed", self.seed, "must be below 2**32: numpy takes no larger one."
        )
        for key in ("weight_decay", "max_grad_norm", "seed", "dataloader_num_workers"):
            require(getattr(self, key) >= 0, f"training.{key}", getattr(self, key), "must be 0 or more.")


@dataclass
class Tracking:
    """Who is told of the run, besides metrics.jsonl; any of them together."""

    name: str = "tensorboard"
    tensorboard: bool = True  # event files in the run's directory
    wandb: bool = False  # Weights & Biases; offline where there is no key
    trackio: bool = False  # a database on this machine
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
    objective: str | None = (
        None  # what a search looks at, after training; null: preference accuracy where there is one, else eval_loss
    )
    direction: Direction | None = None  # which way is better; null: down for losses, up for all else

    def __post_init__(self) -> None:
        for key in ("rows", "generations"):
            require(getattr(self, key) >= 0, f"eval.{key}", getattr(self, key), "must be 0 or more.")
        for key in ("max_new_tokens", "batch"):
            require(getattr(self, key) > 0, f"eval.{key}", getattr(self, key), "must be above 0.")


GROUPS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "parallel": Parallel,
    "training": Training,
    "tracking": Tracking,
    "eval": Eval,
}
