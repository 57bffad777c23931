"""tensorboard: event files in the run's directory, read by `tensorboard --logdir outputs`."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Experiment, to_yaml
from ..runtime.run_directory import RunDirectory
from .follower import NEVER, STEP, Tracker, last_step


class TensorBoard(Tracker):
    """Each attempt writes a file of its own; what earlier ones have behind the step at which it begins is no longer shown."""

    def __init__(self, spec: Experiment, run: RunDirectory) -> None:
        self.folder, self.run, self.text = run.path / "tensorboard", run, to_yaml(spec)

    def known(self) -> int:
        """What metrics.jsonl holds, where an earlier attempt was told it step by step."""
        from torch.utils.tensorboard import SummaryWriter

        found = last_step(self.run) if any(self.folder.glob("events.*")) else NEVER
        self.writer = SummaryWriter(log_dir=str(self.folder), purge_step=found + 1)
        self.writer.add_text("experiment", f"    {self.text}".replace("\n", "\n    "))
        return found

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Points of the curves, on the disk at once."""
        for name, value in values.items():
            if name != STEP:
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, state: str, *, failed: bool) -> None:
        """Close the file."""
        if hasattr(self, "writer"):
            self.writer.close()
