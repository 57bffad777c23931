"""The exceptions that end a command with a sentence. Whoever raises one writes what the user reads."""


class UserError(Exception):
    """What was set, what follows, what to do instead: one sentence, shown without a traceback, exit code 2."""


class WorkerError(Exception):
    """A launched process ended, and why: one sentence, exit code 1. `details` is its traceback, where it had one."""

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        self.details = details
