"""Trainers of every method on tokenized embedded rows, without a run around them: what a run builds, for a
step or two by hand.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor

from alignment_lab import data
from alignment_lab.actions import assembly, tokenized
from alignment_lab.config import METHOD_SCHEMAS, Divergence
from alignment_lab.data import Row
from alignment_lab.data.token_rows import TOKEN_COLUMNS
from alignment_lab.engine.layout import Engine
from alignment_lab.methods import objective_class
from alignment_lab.models.loading import load_model
from alignment_lab.models.locate import locate_model
from alignment_lab.training import TrainContext, Trainer
from alignment_lab.training.backend import create_accelerator
from alignment_lab.training.batch import collate

CPU = torch.device("cpu")
FLOAT32 = torch.float32  # by another name: tests may patch torch's
ROWS, MAX_LENGTH = 6, 96
TEXTS = [
    f"The {place}th sentence of {place % 7 + 2} says {'very ' * (place % 9)}little." for place in range(90)
]
# of random weights, and of what training did to them: log-ratios of some nats
WEIGHT_SCALE, UPDATE_SCALE = (
    0.1,
    0.01,
)


def compact_ids(rows: list[Row]) -> list[Row]:
    """The same rows in a language of few words: ids by their rank among those that occur. Its head is a
    hundredth of the embedded one's.
    """
    used_ids = sorted(
        {
            token
            for row in rows
            for name in TOKEN_COLUMNS
            if name in row and name != "seq_lengths"
            for token in row[name]
        }
        - {-100}
    )
    rank = {-100: -100} | {token: index for index, token in enumerate(used_ids)}
    names = set(TOKEN_COLUMNS) - {"seq_lengths"}
    return [
        {name: [rank[token] for token in value] if name in names else value for name, value in row.items()}
        for row in rows
    ]


@dataclass
class ContextFactory:
    """Makes contexts and trainers. Rows are read and tokenized once for each format of data."""

    composed: Callable[..., Any]
    tokenizer: Any
    folder: Path
    known: dict[Any, list[Row]] = field(default_factory=dict)
    bases: dict[tuple[str, ...], Any] = field(default_factory=dict)
    device: torch.device = CPU
    dtype: torch.dtype = FLOAT32

    def spec(self, method: str, *overrides: str) -> Any:
        """An experiment on model=tiny; continued pre-training gets texts, which the embedded data are not.

        Composing takes longer than a step: it is done once, and methods are put in by hand.
        """
        method_overrides = dict(
            override.removeprefix("method.").split("=")
            for override in overrides
            if override.startswith("method.")
        )
        other_overrides = [override for override in overrides if not override.startswith("method.")]
        if method == "cpt":
            path = self.folder / "texts.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
            other_overrides = ["data=local", f"data.path={path}", *other_overrides]
        if tuple(other_overrides) not in self.bases:
            tiny = [
                "model=tiny",
                f"parallel.device={self.device.type}",
                f"data.max_length={MAX_LENGTH}",
                "model.shape.vocabulary=1000",
            ]
            self.bases[tuple(other_overrides)] = self.composed([*tiny, *other_overrides])
        values = {
            name: getattr(Divergence, value) if name == "divergence" else yaml.safe_load(value)
            for name, value in method_overrides.items()
        }
        return replace(self.bases[tuple(other_overrides)], method=METHOD_SCHEMAS[method](**values))

    def rows(self, spec: Any) -> list[Row]:
        """The first rows, those to train on and as many that are held out."""
        if spec.method.format not in self.known:
            rows = data.load_rows(spec)
            tokenize = data.TOKENIZE[spec.method.format]
            tokenized = (
                tokenize(self.tokenizer, data.take_groups(part, 12 * ROWS), MAX_LENGTH).rows
                for part in (rows.train, rows.heldout)
            )
            self.known[spec.method.format] = compact_ids(
                [row for part in tokenized for row in data.take_groups(part, ROWS)]
            )
        return copy.deepcopy(self.known[spec.method.format])

    def create(
        self, method: str, *overrides: str, rows: list[Row] | None = None, policy: Any = None
    ) -> TrainContext:
        """One experiment, loaded as a run loads it, on `rows` (half of them held out) and `policy` where
        given.
        """
        spec = self.spec(method, *overrides)
        rows = rows or self.rows(spec)
        num_train = len(rows) // 2
        policy = policy or self.policy(spec)
        console = Console(file=io.StringIO(), width=1000)
        accelerator = create_accelerator(spec, self.device, self.dtype)
        splits = data.Splits([], [], "")
        tokens = tokenized.TokenizedData(
            splits, self.folder, self.tokenizer, rows[:num_train], rows[num_train:], num_train
        )
        return assembly.build_context(spec, policy, accelerator, self.device, self.dtype, tokens, console)

    def policy(self, spec: Any) -> Any:
        """Random weights in the widest type that is computed in, large enough for every mistake to show."""
        model = load_model(spec.model, locate_model(spec.model), score_head=not spec.method.generates)
        model = model.to(self.device, torch.float64 if self.dtype is FLOAT32 else torch.float32)
        perturb(model, WEIGHT_SCALE)
        return model


def make_trainer(context: TrainContext, engine: Engine | None = None) -> Trainer:
    """The method's trainer, prepared, its reference computed, with another layout if one is given."""
    context = replace(context, engine=engine) if engine else context
    trainer = Trainer(context, objective_class(context.spec.method)(context))
    trainer.prepare()
    return trainer


def console_output(context: TrainContext) -> str:
    """What was printed."""
    return context.console.file.getvalue()  # type: ignore[attr-defined]


def perturb(policy: Any, by: float = UPDATE_SCALE, seed: int = 3) -> None:
    """Another policy than it was, by a fixed draw."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                weight += by * noise.to(weight.device)


def run_step(
    trainer: Trainer, rows: Sequence[Row] | None = None, *, is_first: bool = False
) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Loss, gradients and means of the metrics of one training step on `rows`, all of the trainer's by
    default.

    The weights are not updated. In a first step the policy must agree with its reference.
    """
    trainer.model.zero_grad()
    trainer.model.train()
    batch = collate(trainer.objective, list(rows or trainer.train_rows)).to(trainer.context.device)
    batch.is_first_step = is_first
    loss = trainer.backward(batch)
    _, means = trainer.metrics.pop()
    gradients = {
        name: weight.grad.clone()
        for name, weight in trainer.model.named_parameters()
        if weight.grad is not None
    }
    return loss.item(), gradients, means
