"""The trackers of an experiment: tensorboard, wandb, trackio. They get what metrics.jsonl holds.

A tracker is imported when it is used. It reports the last step that it has; a resumed run sends it the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..config import Experiment
from ..runtime.run_directory import RunDirectory
from .forwarder import MetricsForwarder, Tracker, run_summary
from .wandb_run import has_key, variable_problems

if TYPE_CHECKING:
    from rich.console import Console

TrackerFactory = Callable[[Experiment, RunDirectory, "Console"], Tracker]
EXTRAS = {"trackio": "trackio"}  # packages that a plain installation lacks, and the extra that has them
_open_forwarders: list[MetricsForwarder] = []  # of the run in this process: one at most

__all__ = ["conclude_tracking", "end_tracking", "has_key", "open_forwarder", "tracker_problems"]


def _tensorboard(spec: Experiment, run: RunDirectory, console: Console) -> Tracker:
    from .tensorboard_run import TensorBoard

    return TensorBoard(spec, run)


def _wandb(spec: Experiment, run: RunDirectory, console: Console) -> Tracker:
    from .wandb_run import Wandb

    return Wandb(spec, run, console)


def _trackio(spec: Experiment, run: RunDirectory, console: Console) -> Tracker:
    from .trackio_run import Trackio

    return Trackio(spec, run, console)


# By their key in `tracking`.
TRACKERS: dict[str, TrackerFactory] = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
WITH_RESULTS = ("wandb", "trackio")  # they take summaries and samples, and not only curves


def requested_trackers(spec: Experiment) -> list[str]:
    """The trackers that the experiment wants."""
    return [name for name in TRACKERS if getattr(spec.tracking, name)]


def tracker_problems(spec: Experiment) -> Iterator[str]:
    """Why a requested tracker would not work, one sentence each."""
    for name in requested_trackers(spec):
        if find_spec(name) is None:
            remedy = f"pip install {name}"
            if name in EXTRAS:
                remedy = f"pip install -e .[{EXTRAS[name]}] -c constraints.txt"
            yield (
                f"tracking.{name}=true: the package {name} is not installed; "
                f"{remedy}, or set tracking.{name}=false."
            )
        elif name == "wandb" and (problems := list(variable_problems())):
            yield from problems
        elif name == "wandb" and os.environ.get("WANDB_MODE") == "online" and not has_key():
            yield (
                "tracking.wandb=true: WANDB_MODE=online, and nobody is logged in; "
                "call `wandb login`, or leave WANDB_MODE unset."
            )


def open_forwarder(spec: Experiment, run: RunDirectory, console: Console) -> MetricsForwarder | None:
    """Open the trackers of this experiment for its metrics; None where it wants none."""
    names = requested_trackers(spec)
    if not names:
        return None
    end_tracking(run, failed=True)  # of the previous run of a sweep, if its page could not be written
    forwarder = MetricsForwarder(run, [TRACKERS[name](spec, run, console) for name in names])
    _open_forwarders.append(forwarder)
    return forwarder


def conclude_tracking(spec: Experiment, run: RunDirectory, console: Console) -> None:
    """Send the results of a finished run: numbers to sort by, samples, the page.

    A tracker that fails does not fail the run.
    """
    try:
        names = [name for name in requested_trackers(spec) if name in WITH_RESULTS]
        if not _open_forwarders and names:
            # Worker processes logged the steps, printed where to find the run, and have ended.
            quiet = type(console)(quiet=True)
            trackers = [TRACKERS[name](spec, run, quiet) for name in names]
            _open_forwarders.append(MetricsForwarder(run, trackers))
        for forwarder in _open_forwarders:
            forwarder.conclude(run_summary(run.state(), run.report() or {}), run.samples(), run.page_file)
    except Exception as error:
        message = (
            f"tracking: the results of this run were not sent ({type(error).__name__}: {error}); "
            f"everything is in {run.path}"
        )
        console.print(message, highlight=False, soft_wrap=True)
    end_tracking(run, failed=False)


def end_tracking(run: RunDirectory, *, failed: bool) -> None:
    """Close the open trackers with the state of the run."""
    while _open_forwarders:
        _open_forwarders.pop().close(run.state().get("state", "failed"), failed=failed)
