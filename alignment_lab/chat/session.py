"""A talk from its first line to its last: lines in, answers or what commands say out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ..runtime.errors import UserError
from ..runtime.output import lost_output
from . import commands
from .answer import AnswerStream
from .interruption import Interruption, interruption, without_echo
from .screen import Pipe, Terminal
from .settings import ChatSettings
from .speaker import Speaker
from .talk import Answer, SavedTalks, Talk, Turn

LONG_QUOTE = '"""'  # before and after a message of several lines


class Session:
    """The models, the talk with them, and how they answer."""

    def __init__(
        self,
        speakers: Sequence[Speaker],
        settings: ChatSettings,
        system: str | None,
        screen: Pipe | Terminal,
        *,
        interactive: bool,
    ) -> None:
        self.speakers, self.settings, self.screen = speakers, settings, screen
        self.interactive = interactive
        self.talk, self.saved, self.is_over = Talk(system), SavedTalks(), False

    def run(self, lines: Iterable[str]) -> None:
        """Take each line, as a message or a command, until they end or one of them ends the talk.

        Raises UserError where a line cannot be used, unless somebody sits there who can correct it.
        """
        for message in messages(lines):
            try:
                self._take(message)
            except UserError as error:
                if not self.interactive:
                    raise
                self.screen.tell(f"error: {error}")
            if self.is_over or "stdout" in lost_output():
                return

    def _take(self, message: str) -> None:
        if message.startswith("/") and not message.startswith("//"):
            if said := commands.run(self, message):
                self.screen.tell(said)
        else:
            self._ask(message.removeprefix("/") if message.startswith("//") else message)

    def _ask(self, question: str) -> None:
        if self.interactive:
            with without_echo(), interruption() as noted:
                streams = self._show_answers(question, noted)
        else:
            streams = self._show_answers(question, Interruption())
        if any(stream.stopped and not stream.text for stream in streams):
            self.screen.tell("stopped before there was an answer: the message is taken back")
        else:
            answers = [Answer(stream.text, stream.finished) for stream in streams]
            self.talk.turns.append(Turn(question, answers))

    def _show_answers(self, question: str, noted: Interruption) -> list[AnswerStream]:
        def goes_on() -> bool:
            return not noted.requested and "stdout" not in lost_output()

        def footer(stream: AnswerStream) -> str:
            noted.requested = False  # it stopped this answer, and not one that comes after it
            return self._footer(stream)

        streams = [self._answer(index, question, goes_on) for index in range(len(self.speakers))]
        self.screen.show([speaker.name for speaker in self.speakers], streams, footer)
        return streams

    def _answer(self, index: int, question: str, goes_on: Callable[[], bool]) -> AnswerStream:
        speaker = self.speakers[index]
        tokens = speaker.answer(self.talk.prompt(index, question), self.settings)
        return AnswerStream(tokens, speaker.tokenizer, speaker.stop_ids, goes_on)

    def _footer(self, stream: AnswerStream) -> str:
        why = ""
        if "stdout" in lost_output():
            return ""
        if stream.stopped:
            why = "stopped"
        elif not stream.finished and stream.count < self.settings.max_new_tokens:
            why = "cut where the model's context ends"
        elif not stream.finished:
            why = f"cut at max_new_tokens={self.settings.max_new_tokens}"
        elif not stream.text:
            why = "an empty answer"
        if not self.interactive:
            return why
        speed = f", {stream.count / stream.seconds:.0f} tokens/s" if stream.seconds else ""
        return f"{stream.count} tokens{speed}{f'; {why}' if why else ''}"


def messages(lines: Iterable[str]) -> Iterator[str]:
    """The messages in these lines: each that is not empty is one, and so is what stands in triple quotes."""
    parts: list[str] | None = None  # of a message of several lines
    for line in lines:
        text = line.rstrip("\r\n")
        if parts is None and text.strip().startswith(LONG_QUOTE):
            parts, text = [], text.strip().removeprefix(LONG_QUOTE)
        if parts is None:
            if text.strip():
                yield text.strip()
            continue
        ends = text.rstrip().endswith(LONG_QUOTE)
        parts.append(text.rstrip().removesuffix(LONG_QUOTE) if ends else text)
        if ends:
            message, parts = "\n".join(parts).strip("\n"), None
            if message:
                yield message
    if parts and (message := "\n".join(parts).strip("\n")):
        yield message
