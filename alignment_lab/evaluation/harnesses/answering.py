"""How a harness asks a model: conversations in, texts out. The harness knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...data.rows import Message


class Answer(Protocol):
    """Answers conversations with a model, by its chat template."""

    def __call__(
        self, chats: Sequence[list[Message]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """What the model says next in each conversation, without special tokens, in order.

        The same seed gives the same answers, whatever else is asked with them.
        """
        ...
