"""Who is told what as training goes on: a typed list of callbacks, and hooks that are given at
construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..runtime.files import utc_now
from ..runtime.output import lost_output
from ..runtime.progress import ProgressBar
from ..tracking import open_forwarder

if TYPE_CHECKING:
    from rich.console import Console

    from ..config import Experiment
    from ..data import Row
    from ..runtime.run_directory import RunDirectory
    from .context import TrainContext
    from .loop import Trainer
    from .state import TrainState


def _nothing(*_: object) -> None:
    """The default of a hook."""


@dataclass(frozen=True)
class Hooks:
    """What a run does at the loop's turning points. By default nothing."""

    # something moved: a pass, a file that was written
    heartbeat: Callable[[], None] = _nothing
    # around the reference's log-probabilities
    reference_timer: AbstractContextManager[None] = field(default_factory=nullcontext)
    # once, before a checkpoint is loaded and the first step is taken
    on_start: Callable[[Trainer], None] = _nothing
    # a checkpoint was committed
    on_save: Callable[[Trainer], None] = _nothing
    # a step was not taken: its number, its gradient's norm, its rows
    on_nonfinite: Callable[[int, float, list[Row]], None] = _nothing


class Callback:
    """Told of each event of the loop, in the order of the list. Every method may be left out."""

    def on_train_begin(self, state: TrainState) -> None:
        """The first step is next."""

    def on_step_begin(self, state: TrainState) -> None:
        """A step's batch is there."""

    def on_step_end(self, state: TrainState) -> None:
        """A step was taken, and is not logged yet."""

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Metrics of the steps since the last log, or of held-out rows."""

    def on_save(self, state: TrainState) -> None:
        """A checkpoint of this step was committed."""

    def on_train_end(self, state: TrainState) -> None:
        """The last step was taken."""


class MetricsLog(Callback):
    """Appends every logged step to metrics.jsonl; run.json says where this attempt began, so that its speed
    is known.
    """

    def __init__(self, run: RunDirectory, context: TrainContext) -> None:
        self.run, self.tokens_per_step = run, round(context.tokens_per_step, 1)
        self.steps_per_epoch = context.available / context.rows_per_step
        self.lost_output: dict[str, str] = {}

    def on_train_begin(self, state: TrainState) -> None:
        """Note the step that this attempt starts from."""
        start = {"from_step": state.step, "since": utc_now(), "tokens_per_step": self.tokens_per_step}
        self.run.update_state(training=start)

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Write one line, with the epoch counted over all rows of the data."""
        self.run.log_metrics(
            {"step": state.step, **metrics, "epoch": round(state.step / self.steps_per_epoch, 4)}
        )
        if lost_output() != self.lost_output:
            self.lost_output = lost_output()
            self.run.update_state(lost_output=self.lost_output)


class TrackerCallback(Callback):
    """Passes metrics.jsonl on to tensorboard, wandb or trackio, after every line that it was given.

    What it holds when training begins is of attempts before; not all of it may have been passed on.
    """

    def __init__(self, spec: Experiment, run: RunDirectory, console: Console) -> None:
        self.forwarder = open_forwarder(spec, run, console)

    def on_train_begin(self, state: TrainState) -> None:
        """Pass on what attempts before logged."""
        if self.forwarder:
            self.forwarder.start()

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Pass on the new line."""
        if self.forwarder:
            self.forwarder.forward()

    def on_train_end(self, state: TrainState) -> None:
        """Pass on what is left."""
        if self.forwarder:
            self.forwarder.forward()


class UploadCallback(Callback):
    """Starts to upload each checkpoint but the last, which the final model follows."""

    def __init__(self, start: Callable[[int], object], stop: Callable[[], None]) -> None:
        self.start, self.stop = start, stop

    def on_save(self, state: TrainState) -> None:
        """Start, unless the upload before is not done yet."""
        if state.step < state.max_steps:
            self.start(state.step)

    def on_train_end(self, state: TrainState) -> None:
        """End an upload that is under way."""
        self.stop()


class ProgressCallback(Callback):
    """A bar of optimizer steps with the latest loss."""

    SHOWN = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}

    def __init__(self, console: Console) -> None:
        self.console, self.note = console, ""

    def on_train_begin(self, state: TrainState) -> None:
        """Open the bar."""
        self.bar = ProgressBar("training", state.max_steps, self.console)
        self.bar.done = state.step
        self.bar.__enter__()

    def on_step_end(self, state: TrainState) -> None:
        """Advance the bar; the note is that of the last logged step."""
        self.bar.advance(self.note)

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Keep what the next step shows."""
        parts = [f"{label} {metrics[name]:.3f}" for name, label in self.SHOWN.items() if name in metrics]
        self.note = "  ".join(parts) or self.note

    def on_train_end(self, state: TrainState) -> None:
        """Close the bar."""
        self.bar.__exit__()
