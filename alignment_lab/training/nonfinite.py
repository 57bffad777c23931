"""Steps that were not taken, because their loss or gradient is no number: which rows they saw, and whether the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import OnNonfinite, Training
from ..distributed import ranks
from ..runtime.errors import RunError
from ..runtime.run_directory import RunDirectory

SHOWN = 5  # rows that a sentence names


@dataclass
class NonfiniteGuard:
    """Told of each one by every process, which all come to the same: the gradient's norm is that of all of them."""

    run: RunDirectory
    training: Training
    notice: Callable[[str], None]
    last: int = -1
    in_a_row: int = 0

    def __call__(self, step: int, norm: float, rows: list[dict[str, Any]]) -> None:
        """Write it down. Raises RunError where the experiment is to stop, or too many came one after the other."""
        self.in_a_row = self.in_a_row + 1 if step == self.last + 1 else 1
        self.last = step
        if ranks.is_main_process():
            with (self.run.path / "refused.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "grad_norm": str(norm), "rows": rows}) + "\n")
        places = ", ".join(str(row["row"]) for row in rows[:SHOWN]) + (
            f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        )
        said = f"step {step}: the gradient's norm is {norm}, and the step was not taken; its rows are {places} (all in refused.jsonl)"
        if self.training.on_nonfinite is OnNonfinite.skip and self.in_a_row <= self.training.max_nonfinite:
            self.notice(f"{said}; going on, as training.on_nonfinite=skip")
            return
        much = (
            f"{self.in_a_row} in a row, more than training.max_nonfinite={self.training.max_nonfinite}; "
            if self.in_a_row > 1
            else ""
        )
        skip = (
            ""
            if self.training.on_nonfinite is OnNonfinite.skip
            else ", or training.on_nonfinite=skip to leave such steps out"
        )
        raise RunError(
            f"{said}; {much}look at these rows, lower training.learning_rate, or use model.dtype=float32{skip}."
        )
