"""The exceptions that end a command with one sentence and no traceback.

Whoever raises one writes what the user reads.
"""

from __future__ import annotations

from signal import Signals

EXIT_HUNG = 75  # exit code of a run that the watchdog ended: EX_TEMPFAIL, try again


class UserError(Exception):
    """What was set, what follows, what to do instead: one sentence without a traceback, exit code 2."""


class RunError(Exception):
    """Why a correctly configured run ended, and what to do: one sentence, exit code 1."""

    code = 1


class WorkerError(RunError):
    """A launched process ended, and why. `details` is its traceback, where it had one."""

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        self.details = details


class HungError(RunError):
    """The run made no progress for longer than the user allows. It can be resumed."""

    code = EXIT_HUNG


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop, and it stopped in order: it can be resumed.

    A subclass of KeyboardInterrupt, so that no library swallows it with `except Exception`.
    """

    def __init__(self, signal: Signals, sentence: str = "") -> None:
        super().__init__(sentence or f"interrupted by {signal.name}")
        self.signal = signal

    @property
    def code(self) -> int:
        """The exit code by the convention of shells."""
        return 128 + self.signal


def describe_error(error: BaseException) -> str:
    """The error as run.json has it: its sentence, or its type and message."""
    if isinstance(error, UserError | RunError | Interrupted):
        return str(error)
    return f"{type(error).__name__}: {error}"
