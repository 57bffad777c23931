"""How a harness asks a model: conversations in, texts out. Harnesses know no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ...data.rows import Message
from ...data.templates import encode_prompts, stop_token_ids

if TYPE_CHECKING:
    from rich.console import Console

    from ..subject import Subject


class Answer(Protocol):
    """Answers conversations with a model, by its chat template."""

    def __call__(
        self, chats: Sequence[list[Message]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """What the model says next in each conversation, without special tokens, in order.

        The same seed gives the same answers, whatever else is asked with them.
        """
        ...


class SubjectAnswers:
    """`Answer` of a subject, by the lab's own generation. Counts what its context has no room for."""

    def __init__(self, subject: Subject, console: Console, label: str, max_rows: int) -> None:
        self.subject, self.console, self.label, self.max_rows = subject, console, label, max_rows
        config = subject.model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)  # tokens
        self.asked = self.cut = self.refused = 0

    def __call__(
        self, chats: Sequence[list[Message]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """See `Answer`. Where the model's context ends before `max_new_tokens`, the answer ends there; a
        conversation that fills it has an empty answer.
        """
        prompts = encode_prompts(self.subject.tokenizer, [{"prompt": chat} for chat in chats])
        by_room: dict[int, list[int]] = {}  # tokens that may be generated -> conversations
        for index, prompt in enumerate(prompts):
            room = max_new_tokens if self.context is None else min(max_new_tokens, self.context - len(prompt))
            by_room.setdefault(max(room, 0), []).append(index)
        texts = [""] * len(chats)
        for room, indices in sorted(by_room.items(), reverse=True):
            if room:
                answers = self._generate([prompts[index] for index in indices], room, temperature, seed)
                for index, (text, finished) in zip(indices, answers, strict=True):
                    texts[index] = text
                    self.cut += not finished
            else:
                self.refused += len(indices)
        self.asked += len(chats)
        return texts

    def _generate(
        self, prompts: list[list[int]], room: int, temperature: float, seed: int
    ) -> list[tuple[str, bool]]:
        from ...engine.generation import Sampling, generate
        from ...runtime.progress import progress_tracker

        subject = self.subject
        completions = generate(
            subject.model,
            prompts,
            Sampling(room, temperature=temperature, seed=seed),
            stop_ids=stop_token_ids(subject.tokenizer),
            max_tokens=max(subject.max_tokens, max(map(len, prompts)) + room),
            max_rows=self.max_rows,
            device=subject.device,
            dtype=subject.dtype,
            progress=progress_tracker(self.label, self.console),
        )
        answers = [answer for (answer,) in completions]
        texts = subject.tokenizer.batch_decode([each.token_ids for each in answers], skip_special_tokens=True)
        return [(text.strip(), answer.finished) for text, answer in zip(texts, answers, strict=True)]

    def notes(self) -> list[str]:
        """What a reader of the answers must know."""
        notes = []
        if self.cut:
            notes.append(f"{self.label}: {self.cut} of {self.asked} answers were cut before they ended")
        if self.refused:
            notes.append(
                f"{self.label}: {self.refused} of {self.asked} answers are empty, as their prompts fill the "
                f"model's context of {self.context} tokens"
            )
        return notes
