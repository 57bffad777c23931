"""What happens at each step besides the step: metrics on disk, checkpoints committed, evaluation asked for, a bar moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..distributed import collectives
from ..runtime.files import utc_now
from ..runtime.progress import ProgressBar
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest

if TYPE_CHECKING:
    from rich.console import Console

    from .context import TrainContext


class MetricsLog(TrainerCallback):
    """Appends every logged step to metrics.jsonl; run.json says where this attempt began, for whoever wants to know its speed."""

    def __init__(self, run: RunDirectory, setting: TrainContext) -> None:
        self.run, self.tokens_per_step = run, round(setting.tokens_per_step, 1)
        self.steps_per_epoch = setting.available / setting.spec.training.global_batch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The first step is next."""
        self.run.update_state(
            training={
                "from_step": state.global_step,
                "since": utc_now(),
                "tokens_per_step": self.tokens_per_step,
            }
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """One line a step, its epoch counted over all rows of the data; the Trainer's closing summary goes into report.json instead."""
        if logs and "train_runtime" not in logs:
            self.run.log_metrics(
                {
                    "step": state.global_step,
                    **logs,
                    "epoch": round(state.global_step / self.steps_per_epoch, 4),
                }
            )


class LogLastStep(TrainerCallback):
    """What the steps since the last log came to is not lost, whatever training.logging_steps is."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """All processes together: they gather what they log."""
        control.should_log |= state.global_step >= state.max_steps


class LeaveWhenAsked(TrainerCallback):
    """A signal came: the step in progress was the last, it is logged, and a checkpoint is committed."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop, self.left = stop, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """From here on there is something to lose."""
        self.stop.deferred = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """All processes leave at the same step."""
        if collectives.any_process(self.stop.signal is not None):
            self.left = control.should_save = control.should_training_stop = True


class EvaluateEvery(TrainerCallback):
    """Asks for an evaluation every `steps` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Not at the last step: the run measures itself after training anyway."""
        if state.global_step % self.steps == 0 and state.global_step < state.max_steps:
            control.should_evaluate = True


class ShowSteps(TrainerCallback):
    """A bar of optimizer steps with the latest loss."""

    def __init__(self, console: Console) -> None:
        self.console, self.note = console, ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar."""
        self.bar = ProgressBar("training", state.max_steps, self.console)
        self.bar.done = state.global_step
        self.bar.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar; a step's log comes after its end, so the note is that of the step before."""
        self.bar.advance(self.note)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """Keep what the next move shows."""
        shown = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
        self.note = (
            "  ".join(f"{label} {logs[name]:.3f}" for name, label in shown.items() if logs and name in logs)
            or self.note
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the bar."""
        self.bar.__exit__()
