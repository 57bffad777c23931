"""Why a row is left out: a closed list, by which rows are counted, quarantined and reported."""

from __future__ import annotations

from collections import Counter
from enum import Enum

from ..runtime.errors import UserError


class DataError(UserError):
    """The data cannot be read or used."""


class Reason(Enum):
    """Why a row is left out; its value says it of any row, in words that follow a count."""

    # as it was read
    unreadable = "cannot be read"  # a line that is cut, no UTF-8, not the type that the file has
    not_a_row = "are no mapping of columns"
    # its columns
    missing_column = "lack a column"
    not_text = "have something else where text belongs"
    not_messages = "have a column that holds neither text nor messages"
    empty = "have nothing to learn from in a column"
    no_prompt = "have no prompt that is answered"
    not_an_answer = "do not end with the assistant's turn"
    untrained = "have no answer that is trained"
    equal_answers = "have two equal answers"
    no_preference = "prefer neither answer"
    bad_label = "have a label that is neither true nor false"
    bad_number = "have something else where a finite number belongs"
    bad_kwargs = "have chat_template_kwargs that are no mapping"
    media = "hold pictures, sound or video"
    templated = "hold text to which a chat template was applied already"
    # their messages
    unknown_role = "have a message whose role is not known"
    no_content = "have a message without content"
    bad_content = "have a message whose content is not text"
    bad_weight = "have a message whose weight is neither 0 nor 1"
    bad_tools = "have tools, or calls of them, that are not in a known shape"
    # as tokens
    template_refuses = "are refused by the chat template"
    prompt_too_long = "have a prompt that fills data.max_length"
    no_tokens = "have no token to train on"
    equal_tokens = "have two answers that are equal as they are trained"

    @property
    def uninformative(self) -> bool:
        """Whether the row is well formed, with nothing to learn from: it is left out, and is no defect."""
        return self in UNINFORMATIVE


UNINFORMATIVE = {
    Reason.empty, Reason.equal_answers, Reason.no_preference, Reason.untrained,
    Reason.prompt_too_long, Reason.no_tokens, Reason.equal_tokens,
}  # fmt: skip


def describe_reasons(counts: Counter[str]) -> str:
    """`12: a prompt or a turn of it is held out; 3: ...`, in the order of counting; empty without any."""
    return "; ".join(f"{count}: {reason}" for reason, count in counts.items())


class BadRow(ValueError):
    """A row that cannot be used. `detail` names the column, role or value, and is the same for equal defects,
    which are counted together.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason, self.detail = reason, detail

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BadRow):
            return NotImplemented
        return (self.reason, self.detail) == (other.reason, other.detail)

    def __hash__(self) -> int:
        return hash((self.reason, self.detail))

    def __reduce__(self) -> tuple[type[BadRow], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)
