"""Steps that were not taken because a loss or gradient is not finite: which rows they saw, and whether the
run continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from ..config import OnNonfinite, Training
from ..data import Row
from ..distributed import ranks
from ..runtime.errors import RunError
from ..runtime.run_directory import RunDirectory

MAX_NAMED = 5  # rows that a message names


@dataclass
class NonfiniteGuard:
    """Called by every process for each such step; all decide the same, as the gradient's norm is that of all
    of them.
    """

    run: RunDirectory
    training: Training
    notify: Callable[[str], None]
    last_step: int = -1
    consecutive: int = 0

    def __call__(self, step: int, norm: float, rows: list[Row]) -> None:
        """Record it in refused.jsonl. Raises RunError where the run is to stop, or too many came one after
        the other.
        """
        self.consecutive = self.consecutive + 1 if step == self.last_step + 1 else 1
        self.last_step = step
        if ranks.is_main_process():
            with (self.run.path / "refused.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "grad_norm": str(norm), "rows": rows}) + "\n")
        indices = ", ".join(str(row["row"]) for row in rows[:MAX_NAMED])
        more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
        what = (
            f"step {step}: the gradient's norm is {norm}, and the step was not taken; "
            f"its rows are {indices}{more} (all in refused.jsonl)"
        )
        skips = self.training.on_nonfinite is OnNonfinite.skip
        if skips and self.consecutive <= self.training.max_nonfinite:
            self.notify(f"{what}; going on, as training.on_nonfinite=skip")
            return
        limit = f"more than training.max_nonfinite={self.training.max_nonfinite}"
        count = f"{self.consecutive} in a row, {limit}; " if self.consecutive > 1 else ""
        skip = "" if skips else ", or training.on_nonfinite=skip to leave such steps out"
        remedy = f"look at these rows, lower training.learning_rate, or use model.dtype=float32{skip}."
        raise RunError(f"{what}; {count}{remedy}")
