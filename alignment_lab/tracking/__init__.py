"""Who is told of a run: tensorboard, wandb, trackio, whichever the experiment says. All of them are told what metrics.jsonl holds.

A tracker is imported when it is asked for. Each says up to which step it has been told; a run that goes on tells it the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..config import Experiment
from ..runtime.run_directory import RunDirectory
from .follower import Follower, Tracker, summary
from .wandb_run import has_key

if TYPE_CHECKING:
    from rich.console import Console

Opener = Callable[[Experiment, RunDirectory, "Console"], Tracker]
EXTRAS = {"trackio": "trackio"}  # what a plain installation lacks, and the extra that has it
_followers: list[Follower] = []  # of the run in this process: one at most

__all__ = ["conclude_tracking", "end_tracking", "has_key", "open_follower", "tracker_problems"]


def _tensorboard(spec: Experiment, run: RunDirectory, console: Console) -> Tracker:
    from .tensorboard_run import TensorBoard

    return TensorBoard(spec, run)


def _wandb(spec: Experiment, run: RunDirectory, console: Console) -> Tracker:
    from .wandb_run import Wandb

    return Wandb(spec, run, console)


def _trackio(spec: Experiment, run: RunDirectory, console: Console) -> Tracker:
    from .trackio_run import Trackio

    return Trackio(spec, run, console)


TRACKERS: dict[str, Opener] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}  # by their key in `tracking`
WITH_AN_END = ("wandb", "trackio")  # these take more than curves


def requested_trackers(spec: Experiment) -> list[str]:
    """The trackers that this experiment wants."""
    return [name for name in TRACKERS if getattr(spec.tracking, name)]


def tracker_problems(spec: Experiment) -> Iterator[str]:
    """What keeps a tracker from being told, a sentence each; nothing is imported for it."""
    for name in requested_trackers(spec):
        if find_spec(name) is None:
            remedy = (
                f"pip install -e .[{EXTRAS[name]}] -c constraints.txt"
                if name in EXTRAS
                else f"pip install {name}"
            )
            yield f"tracking.{name}=true: the package {name} is not installed; {remedy}, or set tracking.{name}=false."
        elif name == "wandb" and os.environ.get("WANDB_MODE") == "online" and not has_key():
            yield "tracking.wandb=true: WANDB_MODE=online, and there is no login here; call `wandb login`, or leave WANDB_MODE unset."


def open_follower(spec: Experiment, run: RunDirectory, console: Console) -> Follower | None:
    """What passes metrics.jsonl on to the trackers of this experiment; None where it wants none."""
    names = requested_trackers(spec)
    if not names:
        return None
    end_tracking(run, failed=True)  # of a run before, in a sweep, whose page could not be written
    follower = Follower(run, [TRACKERS[name](spec, run, console) for name in names])
    _followers.append(follower)
    return follower


def conclude_tracking(spec: Experiment, run: RunDirectory, console: Console) -> None:
    """Tell what a finished run came to: numbers to sort by, samples, the page. A tracker that fails fails no run."""
    try:
        names = [name for name in requested_trackers(spec) if name in WITH_AN_END]
        if not _followers and names:  # its processes have told the steps, and are gone
            silent = type(console)(quiet=True)  # they have said where it is found, too
            _followers.append(Follower(run, [TRACKERS[name](spec, run, silent) for name in names]))
        for follower in _followers:
            follower.conclude(summary(run.state(), run.report() or {}), run.samples(), run.page_file)
    except Exception as error:
        said = f"tracking: the end of this run was not told ({type(error).__name__}: {error}); everything is in {run.path}"
        console.print(said, highlight=False, soft_wrap=True)
    end_tracking(run, failed=False)


def end_tracking(run: RunDirectory, *, failed: bool) -> None:
    """Close them, with what became of the run."""
    while _followers:
        _followers.pop().close(run.state().get("state", "failed"), failed=failed)
