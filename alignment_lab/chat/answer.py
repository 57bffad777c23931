"""An answer as it is generated: token ids in, pieces of text out.

The pieces of an answer, put together, are what decoding it at once gives, stripped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what the bytes of a character that is not complete are decoded to


class AnswerStream:
    """The text of an answer, piece by piece; iterate over it once."""

    def __init__(
        self,
        tokens: Iterable[int],
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Collection[int],
        goes_on: Callable[[], bool] = lambda: True,
    ) -> None:
        """`goes_on` is asked after every token, whether the answer is to be continued."""
        self._tokens, self._tokenizer, self._stop_ids = tokens, tokenizer, stop_ids
        self._goes_on = goes_on
        self.text, self.count, self.seconds = "", 0, 0.0
        self.finished, self.stopped = False, False  # it ended by itself; it was not to be continued

    def __iter__(self) -> Iterator[str]:
        held = ""  # white space, which is no part of the answer where nothing follows
        for piece in self._timed(self._pieces()):
            piece = held + piece if self.text else (held + piece).lstrip()
            kept = piece.rstrip()
            held = piece[len(kept) :]
            self.text += kept
            yield kept

    def _timed(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces; the seconds that they take count, and not those of another model in between."""
        while True:
            started = time.monotonic()
            piece = next(pieces, None)
            self.seconds += time.monotonic() - started
            if piece is None:
                return
            yield piece

    def _pieces(self) -> Iterator[str]:
        """One piece for each token, often an empty one.

        A token is decoded after those before it, since a tokenizer may write it in another way at the
        beginning; only back to the last piece, so that a long answer costs no more than its length.
        """
        ids: list[int] = []
        begin, end = 0, 0  # ids[begin:end] were written, and are decoded again before what follows
        for token in self._tokens:
            if token in self._stop_ids:
                self.finished = True
                break
            if not self._goes_on():
                self.stopped = True
                break
            self.count += 1
            ids.append(token)
            before, text = self._decode(ids[begin:end]), self._decode(ids[begin:])
            if len(text) > len(before) and not text.endswith(REPLACEMENT):
                begin, end = end, len(ids)
                yield text[len(before) :]
            else:
                yield ""
        if end < len(ids):
            yield self._decode(ids[begin:])[len(self._decode(ids[begin:end])) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
