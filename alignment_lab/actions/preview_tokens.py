"""Token ids as the texts that they stand for, each told from the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ..report.render.preview import Kind, Part, Run, Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what an incomplete character is decoded to
MAX_TOKENS = 4  # of one character: UTF-8 has four bytes at most
HEAD, TAIL = 400, 100  # tokens that are kept of a run
CUT_HEAD, CUT_TAIL = 80, 20  # of what was cut
MAX_RUNS = 60  # of a part

Piece = tuple[int, Kind]  # a token and what becomes of it


class Decoder:
    """From ids to tokens, under one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def part(self, title: str, pieces: Sequence[Piece]) -> Part:
        """A prompt, an answer or a document; long runs without their middle."""
        runs: list[Run] = []
        omitted: dict[Kind, int] = {}
        before: list[int] = []
        for kind, group in groupby(pieces, key=lambda piece: piece[1]):
            ids = [token for token, _ in group]
            if len(runs) < MAX_RUNS:
                runs.append(self._run(kind, ids, before))
            else:
                omitted[kind] = omitted.get(kind, 0) + len(ids)
            before = ids[-1:]
        return Part(title, tuple(runs), omitted)

    def _run(self, kind: Kind, ids: list[int], before: list[int]) -> Run:
        head, tail = (CUT_HEAD, CUT_TAIL) if kind is Kind.cut else (HEAD, TAIL)
        if len(ids) <= head + tail:
            return Run(kind, tuple(self.tokens(ids, before)))
        beginning = self.tokens(ids[:head], before)
        end = self.tokens(ids[-tail:], ids[-tail - 1 : -tail])
        return Run(kind, tuple(beginning), len(ids) - head - tail, tuple(end))

    def tokens(self, ids: Sequence[int], before: Sequence[int] = ()) -> list[Token]:
        """The tokens of ids; those that only together make a character are one.

        `before`: the id in front of them, without which some tokenizers drop a leading space.
        """
        found: list[Token] = []
        context, place = list(before), 0
        while place < len(ids):
            group = self._character(context, ids, place)
            text = self._text(context, group)
            name = str(self.tokenizer.convert_ids_to_tokens(group[0]))
            found.append(Token(text or name, tuple(group), group[0] in self.special))
            context, place = group, place + len(group)
        return found

    def _character(self, context: list[int], ids: Sequence[int], place: int) -> list[int]:
        """The id at `place`, with those after it that complete its character."""
        for size in range(1, MAX_TOKENS + 1):
            group = list(ids[place : place + size])
            if len(group) < size or (size > 1 and group[-1] in self.special):
                break
            if not self._text(context, group).endswith(REPLACEMENT):
                return group
        return [ids[place]]

    def _text(self, context: list[int], group: list[int]) -> str:
        known, whole = self._decode(context), self._decode([*context, *group])
        return whole[len(known) :] if whole.startswith(known) else self._decode(group)

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
