"""The exceptions that end a command with a sentence. Whoever raises one writes what the user reads."""

from signal import Signals

EXIT_HUNG = 75  # the exit code of a run that stood still: EX_TEMPFAIL, try again


class UserError(Exception):
    """What was set, what follows, what to do instead: one sentence, shown without a traceback, exit code 2."""


class RunError(Exception):
    """What ended a run that was well asked for, and what to do: one sentence, exit code 1."""

    code = 1


class WorkerError(RunError):
    """A launched process ended, and why. `details` is its traceback, where it had one."""

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        self.details = details


class HungError(RunError):
    """Nothing moved for longer than the user allows. The run can be resumed."""

    code = EXIT_HUNG


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to leave, and it left in order: it can be resumed. An heir of Ctrl-C, so that no library swallows it."""

    def __init__(self, signal: Signals, sentence: str = "") -> None:
        super().__init__(sentence or f"interrupted by {signal.name}")
        self.signal = signal

    @property
    def code(self) -> int:
        """As shells have it."""
        return 128 + self.signal


def describe_error(error: BaseException) -> str:
    """The error as run.json has it: its sentence, or what kind it is of."""
    return (
        str(error)
        if isinstance(error, UserError | RunError | Interrupted)
        else f"{type(error).__name__}: {error}"
    )
