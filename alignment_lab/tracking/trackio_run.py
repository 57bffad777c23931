"""trackio: a database on this machine, under TRACKIO_DIR or in the user's Hugging Face cache; no account, no network."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Experiment, to_plain
from ..runtime.errors import UserError
from ..runtime.redaction import redact
from ..runtime.run_directory import RunDirectory
from .follower import NEVER, SAMPLE_COLUMNS, Tracker, last_step, place_of, sweep_of

if TYPE_CHECKING:
    from rich.console import Console


class Trackio(Tracker):
    """A run is known by its name there, so the name says in which place it lies."""

    def __init__(self, spec: Experiment, run: RunDirectory, console: Console) -> None:
        import trackio

        plain = to_plain(spec)
        self.project, self.name = plain["tracking"]["project"], f"{redact(run.path.name)}-{place_of(run)}"
        self.last = max(last_step(run), 0)  # where the end is told
        told = io.StringIO()  # several lines, of which one is enough
        try:
            with redirect_stdout(told):
                self.run = trackio.init(
                    project=self.project,
                    name=self.name,
                    group=plain["tracking"]["group"] or sweep_of(run),
                    config=plain,
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        except ValueError as error:
            raise UserError(
                f"tracking.project={self.project}: trackio does not take it ({error}); give another name."
            ) from error
        console.print(
            f"trackio: look at it with  trackio show --project {self.project}",
            highlight=False,
            soft_wrap=True,
        )

    def known(self) -> int:
        """What its database holds."""
        from trackio.sqlite_storage import SQLiteStorage

        found = SQLiteStorage.get_max_step_for_run(self.project, self.name)
        return NEVER if found is None else int(found)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row of its database."""
        self.last = step
        self.run.log(dict(values), step=step)

    def conclude(self, numbers: Mapping[str, Any], samples: list[list[str]], page: Path) -> None:
        """Numbers as metrics of the last step, and the table; it has no place for a page."""
        import trackio

        found: dict[str, Any] = {
            name: value for name, value in numbers.items() if isinstance(value, int | float)
        }
        if samples:
            found["samples"] = trackio.Table(columns=list(SAMPLE_COLUMNS), data=samples)
        self.run.log(found, step=self.last)

    def close(self, state: str, *, failed: bool) -> None:
        """Wait until it is written."""
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()
