"""What is compared: cases, the two ways in which TRL is run, and the job that a measured process is given. No torch.

A case is a method on rows. The rows are those of `../shared/data`, beside the checkout, where they lie there; else the embedded data
stands in, and the results say so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
BATCH = 8  # rows per optimizer step, and TRL's default rows per forward pass
MAX_LENGTH = 1024  # tokens, TRL's default

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A method on the rows of one file."""

    name: str
    method: str
    file: str

    @property
    def path(self) -> Path | None:
        """The file, or None where it is not here."""
        return SHARED / self.file if (SHARED / self.file).is_file() else None

    @property
    def data(self) -> list[str]:
        """The lab's overrides that choose these rows; KTO's weights are TRL's, which the counts of both labels do not change."""
        weights = ["method.desirable_weight=1", "method.undesirable_weight=1"] if self.method == "kto" else []
        return [
            *weights,
            *(["data=local", f"data.path={self.path}"] if self.path else ["data=embedded"]),
            f"data.max_length={MAX_LENGTH}",
        ]


CASES = {
    case.name: case
    for case in (
        Case("dpo/hh", "dpo", "hh_harmless_1000.jsonl"),
        Case("dpo/dpo_en", "dpo", "dpo_en_demo.json"),
        Case("kto/hh", "kto", "hh_harmless_1000.jsonl"),  # the same pairs, each as two labelled answers
        Case("kto/kto_en", "kto", "kto_en_demo.json"),
        Case("orpo/hh", "orpo", "hh_harmless_1000.jsonl"),
        Case("sft/alpaca", "sft", "alpaca_en_demo.json"),
        Case("reward/hh", "reward", "hh_harmless_1000.jsonl"),
    )
}

SHIPPED, TUNED = "shipped", "tuned"
PEERS = (TUNED, SHIPPED)
# Beyond its own defaults TRL is given what a CPU without a tracker needs, the rows' order, and the optimizer's schedule of the lab.
MODES: dict[str, dict[str, Any]] = {
    SHIPPED: {},  # bf16 autocast, gradient checkpointing, the reference run live
    TUNED: {"bf16": False, "gradient_checkpointing": False, "precompute_ref_log_probs": True},
}
REFERENCED = ("dpo", "ipo", "kto")  # methods whose configuration knows `precompute_ref_log_probs`


@dataclass
class Job:
    """One process's work. `work` is a name in worker.WORK; which of the others it reads is its own affair."""

    work: str
    weights: str = ""  # a directory that plain transformers loads
    method: str = "dpo"
    model: str = "embedded"  # an option of conf/model, or a shape in shapes.py
    data: list[str] = field(default_factory=list)  # the lab's overrides that choose rows
    feed: str = ""  # a file of token rows in the order of training; of raw rows for `tokens` and `script`
    peer: str = TUNED
    rows: int = BATCH
    batch: int = BATCH  # rows per optimizer step
    micro: int = BATCH  # TRL's rows per forward pass; the lab has its own rule
    learning_rate: float = 1e-5
    seed: int = 42
    device: str = "cpu"
    lora: int = 0  # rank; 0 trains every weight
    settings: dict[str, Any] = field(default_factory=dict)  # of TRL's configuration, over its mode's
    overrides: list[str] = field(default_factory=list)  # of the lab's experiment, over the common ones
    started: float = 0.0  # time.time() at which the process was asked for
    folder: str = ""  # a scratch folder of this process's own, gone when it ends

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one may have fewer rows."""
        return -(-self.rows // self.batch)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))


def read_job(path: Path) -> Job:
    """What `Job.write` wrote."""
    return Job(**json.loads(path.read_text()))


@dataclass
class Measured:
    """What a training run came to. `seconds`: from the trainer's making (reference pass included) to the end of train()."""

    seconds: float
    cpu_seconds: float
    before_training: float  # of `seconds`: the trainer's making, and the reference pass where it comes first
    steps: list[float]  # seconds of each optimizer step
    logs: list[dict[str, float]]  # what the trainer logged at each step
    peak_gb: float  # of the whole process
    rows: list[Row] = field(default_factory=list)  # token rows in the order of training
    notes: dict[str, Any] = field(default_factory=dict)
