"""tensorboard: event files in the run's directory, read by `tensorboard --logdir outputs`."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Experiment, to_yaml
from ..runtime.run_directory import RunDirectory
from .forwarder import NO_STEP, STEP, Tracker, last_logged_step


class TensorBoard(Tracker):
    """Each attempt writes a file of its own.

    Points of earlier ones behind its first step are no longer shown.
    """

    def __init__(self, spec: Experiment, run: RunDirectory) -> None:
        self.folder, self.run, self.spec_text = run.path / "tensorboard", run, to_yaml(spec)

    def last_known_step(self) -> int:
        """The last step of metrics.jsonl, where an earlier attempt wrote event files."""
        from torch.utils.tensorboard import SummaryWriter

        step = last_logged_step(self.run) if any(self.folder.glob("events.*")) else NO_STEP
        self.writer = SummaryWriter(log_dir=str(self.folder), purge_step=step + 1)
        self.writer.add_text("experiment", f"    {self.spec_text}".replace("\n", "\n    "))
        return step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write points of the curves, and flush."""
        for name, value in values.items():
            if name != STEP:
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, state: str, *, failed: bool) -> None:
        """Close the file."""
        if hasattr(self, "writer"):
            self.writer.close()
