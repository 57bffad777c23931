"""The held-out rows that all models of an evaluation are measured on, in the shape that a measure needs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from .. import data
from ..config import METHOD_SCHEMAS, Experiment, Format
from ..data import DataError, Row, TokenRows
from ..models.tokenizer import tokenizer_digest
from ..runtime.errors import UserError
from .subject import Subject

# a method whose rows have this format, for data that is read for no method of a run
METHOD_OF = {
    Format.preference: "dpo",
    Format.unpaired: "kto",
    Format.conversation: "sft",
    Format.text: "cpt",
}


@dataclass
class HeldoutRows:
    """Held-out rows of one experiment's data; each format is read once, when it is asked for."""

    spec: Experiment  # whose data it is
    known: dict[Format, data.Splits] = field(default_factory=dict)

    @cached_property
    def format(self) -> Format:
        """That of the experiment's method where the data can be read so, else the first that it can.

        Raises DataError, that of the method's format, where there is none.
        """
        try:
            self.splits(self.spec.method.format)
        except DataError:
            for format in METHOD_OF:
                with contextlib.suppress(DataError):
                    self.splits(format)
                    return format
            raise
        return self.spec.method.format

    def splits(self, format: Format) -> data.Splits:
        """The data in this format. Raises DataError where it cannot be read so."""
        if format not in self.known:
            own = self.spec.method.format is format
            method = self.spec.method if own else METHOD_SCHEMAS[METHOD_OF[format]]()
            self.known[format] = data.load_rows(replace(self.spec, method=method), trains=False)
        return self.known[format]

    def heldout(self, format: Format) -> Sequence[Row]:
        """The rows that are held out, as they were converted."""
        rows = self.splits(format).heldout
        if not rows:
            raise UserError(
                f"data={self.spec.data.name}: no row is held out to measure on; name some with "
                "data.eval_path or data.eval_split."
            )
        return rows

    def prompts(self, count: int) -> list[Row]:
        """The first rows with a prompt of their own, the same as in training."""
        return data.generation_rows(self.heldout(self.format), count)

    def tokenized(self, subject: Subject, format: Format, count: int) -> Sequence[Row]:
        """The first `count` groups of rows that the subject's template and data.max_length take, as its
        tokens; one that they do not take is replaced by the next.
        """
        tokenizer, rows = subject.tokenizer, self.heldout(format)
        digest, limit = tokenizer_digest(tokenizer), (self.spec.data.max_length, self.spec.data.truncation)
        if format is Format.text:  # they fill blocks, of which none is replaced
            block = data.take_groups(rows, count)
            found = data.tokenize_cached(data.TOKENIZE[format], tokenizer, digest, block, *limit).rows
            return found
        starts = [*data.group_starts(rows).tolist(), len(rows)]
        parts: list[TokenRows] = []
        first, missing = 0, count
        while missing > 0 and first < len(starts) - 1:
            end = min(first + missing, len(starts) - 1)
            block = rows[starts[first] : starts[end]]
            parts.append(data.tokenize_cached(data.TOKENIZE[format], tokenizer, digest, block, *limit).rows)
            first = end
            missing = count - sum(len(data.group_starts(part)) for part in parts)
        return data.join_token_rows(parts)
