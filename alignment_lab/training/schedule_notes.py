"""What of the schedule has no effect in a run of so many steps, in a line; nothing where all of it has.

Knows settings and numbers alone: no model, no torch.
"""

from __future__ import annotations

import math

from ..config import Scheduler, Training

WORTH_TELLING = 0.1  # share of the steps: that a warm-up begins at 0 costs a longer run next to nothing


def warmup_length(training: Training, max_steps: int) -> int:
    """Steps of the warm-up, the first at a learning rate of 0; `warmup_steps` below 1 is a share of all."""
    if training.lr_scheduler_type is Scheduler.constant:
        return 0
    share_or_steps = training.warmup_steps
    return math.ceil(max_steps * share_or_steps) if share_or_steps < 1 else int(share_or_steps)


def describe_schedule(training: Training, max_steps: int) -> str:
    """Which of its steps train nothing, and which intervals are longer than the run; "" where none is."""
    parts = [
        part for part in (_warmup_note(training, max_steps), _interval_note(training, max_steps)) if part
    ]
    return f"schedule: {'; '.join(parts)}" if parts else ""


def _warmup_note(training: Training, max_steps: int) -> str:
    warmup, setting = warmup_length(training, max_steps), f"training.warmup_steps={training.warmup_steps:g}"
    if not warmup:
        return ""
    if max_steps == 1:
        return (
            f"nothing is trained, as the only step is the first of a warm-up ({setting}) and has a learning "
            "rate of 0; set training.warmup_steps=0, or more steps"
        )
    if warmup >= max_steps:
        last = training.learning_rate * (max_steps - 1) / warmup
        return (
            f"{setting} is no shorter than the run of {max_steps} steps, which starts at a learning rate of "
            f"0, ends at {last:.3g} and never reaches training.learning_rate={training.learning_rate:g}"
        )
    if 1 / max_steps >= WORTH_TELLING:
        return f"the first of {max_steps} steps trains nothing, as a warm-up ({setting}) starts at 0"
    return ""


def _interval_note(training: Training, max_steps: int) -> str:
    """Intervals that do not come round once; the last step is logged and saved in any case."""
    intervals = {"logging_steps": training.logging_steps, "save_steps": training.save_steps}
    longer = [f"training.{name}={steps}" for name, steps in intervals.items() if steps and steps > max_steps]
    # after the last step the rows are measured in any case
    if training.eval_steps and training.eval_steps >= max_steps:
        longer.append(f"training.eval_steps={training.eval_steps}")
    run = "1 step" if max_steps == 1 else f"{max_steps} steps"
    return f"{', '.join(longer)}: longer than the run of {run}, whose end alone counts" if longer else ""
