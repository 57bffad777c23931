"""Judges on this machine: a reward model that scores both answers, and a chat model that reads a rubric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...data.prompts import is_open
from ...data.rows import Row
from ...runtime.progress import progress_tracker
from ..candidates import Candidate
from ..reward_scores import reward_scores, sigmoid
from .rubric import LETTERS, judge_messages
from .verdicts import Pair

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from ...engine.packing import ScoredSequence
    from ..subject import Subject

Encoded = tuple[list[int], list[list[int]]]  # a prompt, and the answers to it
SHORTEST = 256  # tokens that a judge's engine is made for, at least
REFUSED = "not asked about: the judge's chat template refuses them"


class LocalJudge:
    """A model that is loaded when it is first asked, and freed by `close`."""

    depends_on_order = True

    def __init__(self, candidate: Candidate, console: Console) -> None:
        self.name, self.candidate, self.console = candidate.name, candidate, console
        self.counts: Counter[str] = Counter()
        self._subject: Subject | None = None

    def close(self) -> None:
        """Give its memory back."""
        from ..subject import free

        if self._subject is not None:
            free(self._subject)
        self._subject = None

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from ...models.tokenizer import load_tokenizer

        if self._subject is not None:
            return self._subject.tokenizer
        return load_tokenizer(self.candidate.spec.model, self.candidate.tokenizer_folder)

    def _ready(self, longest: int) -> Subject:
        """The model, with an engine that is exact up to `longest` tokens."""
        from ..subject import load_subject

        if self._subject is None or self._subject.longest < longest:
            self.close()
            rounded = max(SHORTEST, 1 << (longest - 1).bit_length())
            limit = self._positions()
            self._subject = load_subject(
                self.candidate, min(rounded, max(limit or rounded, longest)), self.console
            )
        return self._subject

    def _positions(self) -> int | None:
        """Tokens that the model reads at most; None where its config does not say."""
        from transformers import AutoConfig

        trust = self.candidate.spec.model.trust_remote_code
        config = AutoConfig.from_pretrained(self.candidate.base, trust_remote_code=trust).get_text_config()
        return getattr(config, "max_position_embeddings", None)

    def _encode(
        self, turns: Sequence[tuple[Row, list[str]]]
    ) -> list[tuple[list[int], list[list[int]]] | None]:
        """(prompt ids, ids of each answer) of each prompt with its answers; None where the template refuses
        one, or the whole is longer than the model reads.
        """
        from ...data.turns import Turn, encode_turns

        asked = [
            Turn(
                row,
                row["prompt"],
                [[{"role": "assistant", "content": answer}] for answer in answers],
                is_open=is_open(row["prompt"]),
            )
            for row, answers in turns
        ]
        limit = self._positions()
        found: list[Encoded | None] = []
        for prompt, answers in encode_turns(self._tokenizer(), asked, Counter()):
            ids = [answer for answer in answers if isinstance(answer, list)]
            if not prompt or len(ids) < len(answers):
                self.counts[REFUSED] += 1
                found.append(None)
            elif limit and len(prompt) + max(map(len, ids)) > limit:
                self.counts[f"not asked about: longer than the {limit} tokens that the judge reads"] += 1
                found.append(None)
            else:
                found.append((prompt, ids))
        return found


class RewardJudge(LocalJudge):
    """P(first is better) = sigmoid of the difference of the scores, as it was trained (Bradley-Terry)."""

    depends_on_order = False

    def probabilities(self, pairs: Sequence[Pair], label: str) -> list[float | None]:
        """See `Judge`."""
        rows: list[Row] = [{"prompt": list(pair.prompt)} for pair in pairs]
        encoded = self._encode(
            [(row, [pair.answer, pair.other]) for row, pair in zip(rows, pairs, strict=True)]
        )
        known = [both for both in encoded if both is not None]
        scores = iter(self._scores([(prompt, ids) for prompt, answers in known for ids in answers], label))
        return [None if both is None else sigmoid(next(scores) - next(scores)) for both in encoded]

    def _scores(self, answers: Sequence[tuple[list[int], list[int]]], label: str) -> list[float]:
        """The score of each (prompt, answer)."""
        if not answers:
            return []
        subject = self._ready(max(len(prompt) + len(answer) for prompt, answer in answers))
        return reward_scores(subject, answers, progress_tracker(label, self.console))


class ChatJudge(LocalJudge):
    """P(first is better) = P(A) / (P(A) + P(B)), of the next token after the rubric and both answers."""

    def __init__(self, candidate: Candidate, rubric: str, console: Console) -> None:
        super().__init__(candidate, console)
        self.rubric = rubric
        self.letter_mass: list[float] = []  # P(A) + P(B): how much of what it would say is a verdict

    def probabilities(self, pairs: Sequence[Pair], label: str) -> list[float | None]:
        """See `Judge`."""
        rows: list[Row] = [{"prompt": judge_messages(pair, self.rubric, may_tie=False)} for pair in pairs]
        encoded = self._encode([(row, list(LETTERS)) for row in rows])
        known = [_before_letters(*each) for each in encoded if each is not None]
        logps = iter(self._letter_logps([sequence for both in known for sequence in both], label))
        found: list[float | None] = []
        for each in encoded:
            if each is None:
                found.append(None)
                continue
            first, second = next(logps), next(logps)
            self.letter_mass.append(math.exp(first) + math.exp(second))
            found.append(sigmoid(first - second))
        return found

    def _letter_logps(self, sequences: Sequence[ScoredSequence], label: str) -> list[float]:
        from ...engine.logprobs import score_sequences

        if not sequences:
            return []
        subject = self._ready(max(map(len, sequences)))
        progress = progress_tracker(label, self.console)
        logps = score_sequences(subject.model, sequences, subject.engine, subject.dtype, progress)
        return [float(tokens[-1]) for tokens in logps]


def _before_letters(prompt: list[int], answers: list[list[int]]) -> list[ScoredSequence]:
    """A sequence for each letter: its token after all that both answers begin with."""
    from ...engine.packing import ScoredSequence

    first, second = answers
    place = next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), 0
    )
    before = [*prompt, *first[:place]]
    return [ScoredSequence(before, answer[place : place + 1]) for answer in answers]
