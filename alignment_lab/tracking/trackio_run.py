"""trackio: a database on this machine, under TRACKIO_DIR or in the user's Hugging Face cache.

No account needed.
"""

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
from .forwarder import NO_STEP, SAMPLE_COLUMNS, Tracker, containing_sweep, last_logged_step, path_hash

if TYPE_CHECKING:
    from rich.console import Console


class Trackio(Tracker):
    """trackio identifies a run by its name, so the name includes a hash of the path."""

    def __init__(self, spec: Experiment, run: RunDirectory, console: Console) -> None:
        import trackio

        config = to_plain(spec)
        self.project = config["tracking"]["project"]
        self.name = f"{redact(run.path.name)}-{path_hash(run)}"
        self.last_step = max(last_logged_step(run), 0)  # at which the results are logged
        try:
            with redirect_stdout(io.StringIO()):  # it prints several lines; the one below is enough
                self.run = trackio.init(
                    project=self.project,
                    name=self.name,
                    group=config["tracking"]["group"] or containing_sweep(run),
                    config=config,
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        except ValueError as error:
            raise UserError(
                f"tracking.project={self.project}: trackio rejects it ({error}); give another name."
            ) from error
        command = f"trackio show --project {self.project}"
        console.print(f"trackio: view it with  {command}", highlight=False, soft_wrap=True)

    def last_known_step(self) -> int:
        """The last step in its database."""
        from trackio.sqlite_storage import SQLiteStorage

        step = SQLiteStorage.get_max_step_for_run(self.project, self.name)
        return NO_STEP if step is None else int(step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of its database."""
        self.last_step = step
        self.run.log(dict(values), step=step)

    def conclude(self, numbers: Mapping[str, Any], samples: list[list[str]], page: Path) -> None:
        """Log numbers as metrics of the last step, and the table of samples. It cannot hold a page."""
        import trackio

        results: dict[str, Any] = {
            name: value for name, value in numbers.items() if isinstance(value, int | float)
        }
        if samples:
            results["samples"] = trackio.Table(columns=list(SAMPLE_COLUMNS), data=samples)
        self.run.log(results, step=self.last_step)

    def close(self, state: str, *, failed: bool) -> None:
        """Wait until everything is written."""
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()
