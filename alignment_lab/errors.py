"""The one exception for a mistake that the user can mend. Whoever raises it writes the sentence that the user reads."""


class UserError(Exception):
    """What was set, what follows, what to do instead: one sentence, shown without a traceback, exit code 2."""
