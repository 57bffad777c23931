"""The tracking group: where metrics go besides metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tracking:
    """Where metrics go besides metrics.jsonl; any of them together."""

    name: str = "tensorboard"
    tensorboard: bool = True  # event files in the run directory
    wandb: bool = False  # Weights & Biases; offline without an API key
    trackio: bool = False  # a database on this machine
    project: str = "alignment_lab"
    group: str | None = None  # null: the name of the sweep, where there is one
    tags: list[str] = field(default_factory=list)
