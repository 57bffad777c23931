"""What is compared: the cases, TRL's two modes, and the job of a measured process. No torch.

A case is a method on the rows of a file in `../shared/data`, beside the checkout. Where it does not exist the
embedded data is used, and the results say so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA_FOLDER = ROOT.parent / "shared" / "data"
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
        """The file, or None where it does not exist."""
        return DATA_FOLDER / self.file if (DATA_FOLDER / self.file).is_file() else None

    @property
    def data(self) -> list[str]:
        """The lab's overrides that choose these rows, and KTO's weights as TRL has them, without balance.

        Where pairs are split in two, a step of TRL's has half as many pairs as rows.
        """
        weights = ["method.desirable_weight=1", "method.undesirable_weight=1"] if self.method == "kto" else []
        halves = [f"training.global_batch={BATCH // 2}"] if self.name == "kto/hh" else []
        return [
            *weights,
            *halves,
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
# Besides, TRL gets what a CPU without a tracker needs, the lab's order of rows, and the lab's schedule.
MODES: dict[str, dict[str, Any]] = {
    SHIPPED: {},  # bf16 autocast, gradient checkpointing, reference forward passes during training
    TUNED: {"bf16": False, "gradient_checkpointing": False, "precompute_ref_log_probs": True},
}
REFERENCED = ("dpo", "ipo", "kto")  # methods whose configuration knows `precompute_ref_log_probs`


@dataclass
class Job:
    """The job of one process. `work` is a name in worker.WORK; each kind of work reads some of the fields."""

    work: str
    weights: str = ""  # a directory that plain transformers loads
    method: str = "dpo"
    model: str = "embedded"  # an option of conf/model, or a shape in shapes.py
    data: list[str] = field(default_factory=list)  # the lab's overrides that choose rows
    feed: str = ""  # a file of token rows in training order; of raw rows for `tokens` and `script`
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
    started: float = 0.0  # time.time() when the process was started
    folder: str = ""  # a scratch folder of this process, deleted when it ends

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one may have fewer rows."""
        return -(-self.rows // self.batch)

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))


def read_job(path: Path) -> Job:
    """Read what `Job.write` wrote."""
    return Job(**json.loads(path.read_text()))


@dataclass
class TrainingResult:
    """The figures of a training run.

    `seconds` runs from building the trainer (reference pass included) to the end of train().
    """

    seconds: float
    cpu_seconds: float
    before_training: float  # of `seconds`: building the trainer, and the reference pass where it comes first
    steps: list[float]  # seconds of each optimizer step
    logs: list[dict[str, float]]  # the metrics of each step
    peak_gb: float  # of the whole process
    rows: list[Row] = field(default_factory=list)  # token rows in training order
    notes: dict[str, Any] = field(default_factory=dict)
