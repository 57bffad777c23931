"""What a preview says of all rows: counts, lengths, what was left out, what the template adds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from ..config import Experiment, Format
from ..data import DataError, Row, Splits, Tokenized, max_sequence_length
from ..data.mixture import describe_unit, source_cells
from ..data.quarantine import EXAMPLES, EXCERPT
from ..data.shortcuts import shortcuts
from ..data.tokenization import tokenize_unpaired
from ..report.render.preview import Histogram, LeftOut, Table, Token
from .preview_tokens import Decoder

LOOKED_AT = 20_000  # bad rows, for the first ones of each reason
ANSWERS = {"chosen_ids": "chosen", "rejected_ids": "rejected", "completion_ids": "completion"}
QUESTION, ANSWER = "question", "answer"  # in the rows that show what the template adds
ONE_TURN: Row = {
    "prompt": [{"role": "user", "content": QUESTION}],
    "completion": [{"role": "assistant", "content": ANSWER}],
    "label": True,
}


def histograms(spec: Experiment, rows: Sequence[Row], of: int) -> list[Histogram]:
    """Lengths of rows that nothing was cut off; `of`: there are so many, of which these are the first."""
    limit = spec.data.max_length
    note = f"of the first {len(rows):,} of {of:,}" if len(rows) < of else ""
    return [Histogram(title, lengths, bound, note) for title, lengths, bound in _lengths(rows, limit)]


def _lengths(rows: Sequence[Row], limit: int) -> Iterator[tuple[str, list[int], int | None]]:
    first = rows[0] if rows else {}
    if "seq_lengths" in first:
        yield "documents, or pieces of them", [length for row in rows for length in row["seq_lengths"]], limit
        yield "blocks", [len(row["input_ids"]) for row in rows], limit
        return
    if "prompt_ids" in first:
        yield "prompt", [len(row["prompt_ids"]) for row in rows], limit
    for column, name in ANSWERS.items():
        if column in first:
            yield name, [len(row[column]) for row in rows], None
    if "labels" in first:
        yield "answers, trained", [sum(label >= 0 for label in row["labels"]) for row in rows], None
    whole = "whole conversation" if "labels" in first else "prompt with its longest answer"
    yield whole, [max_sequence_length(row) for row in rows], limit


def baselines(spec: Experiment, rows: Sequence[Row]) -> list[Table]:
    """What rules without understanding make of pairs; `rows` are some of them."""
    found = shortcuts(rows) if spec.method.format is Format.preference else []
    if not found:
        return []
    cells = [
        (
            rule.name,
            f"{rule.share:.1%}",
            f"{rule.low:.1%} to {rule.high:.1%}",
            f"{rule.undecided / rule.pairs:.0%}",
        )
        for rule in found
    ]
    note = (
        f"Over {found[0].pairs:,} pairs, with 95% intervals; a rule that sees no difference tosses a coin. "
        "What lies far from 50% can be learnt instead of what the pairs are about."
    )
    headings = ("rule", "picks the chosen answer", "interval", "sees no difference")
    return [Table("What is right without reading", headings, cells, note)]


def sources(splits: Splits) -> Table:
    """What became of the rows of each source."""
    headings, rows = source_cells(splits.sources)
    return Table("Rows by source", headings, rows, describe_unit(splits.sources))


def left_out(splits: Splits) -> list[LeftOut]:
    """Why rows were left out, the most frequent reason first, with the first rows of each."""
    examples: dict[str, list[str]] = {}
    for record in islice(chain.from_iterable(splits.quarantine), LOOKED_AT):
        found = examples.setdefault(record.detail or record.reason.value, [])
        if len(found) < EXAMPLES:
            more = "…" * (len(record.excerpt) == EXCERPT)
            found.append(f"{record.file}, {record.unit} {record.line}: {record.excerpt}{more}")
    return [
        LeftOut(reason, count, tuple(examples.get(reason, ())))
        for reason, count in splits.dropped.most_common()
        if count
    ]


def template_tokens(
    spec: Experiment, tokenize: Callable[[list[Row]], Tokenized], decoder: Decoder
) -> dict[str, Sequence[Token]]:
    """What stands around a question and its answer once they are tokenized, by the functions of training."""
    try:
        if spec.method.format is Format.text:
            (block,) = tokenize([{"text": QUESTION}]).rows
            before, after = _around(decoder.tokens(block["input_ids"]), QUESTION)
            return {"before a document": before, "after it": after}
        (row,) = tokenize_unpaired(decoder.tokenizer, [ONE_TURN], sys.maxsize).rows
    except (DataError, ValueError):  # a template that wants more than one turn, or another role
        return {}
    before, header = _around(decoder.tokens(row["prompt_ids"]), QUESTION)
    lead, stop = _around(decoder.tokens(row["completion_ids"], row["prompt_ids"][-1:]), ANSWER)
    return {
        "before a question": before,
        "between it and the answer": header,
        **({"at the answer's beginning, trained": lead} if lead else {}),
        "at the answer's end, trained": stop,
    }


def _around(tokens: list[Token], text: str) -> tuple[list[Token], list[Token]]:
    """The tokens before and after those of a text."""
    start = "".join(token.text for token in tokens).rfind(text)
    end = start + len(text)
    before: list[Token] = []
    after: list[Token] = []
    place = 0
    for token in tokens:
        if place + len(token.text) <= start:
            before.append(token)
        elif place >= end:
            after.append(token)
        place += len(token.text)
    return before, after
