"""What `data.clean` asks for, done to training rows after the split: repeats and leaks, left out or told.

Held-out rows are the same with and without it. Knows what is found and which of it is left out; how it is
found is `duplicates` and `contamination`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..config import Cleaning, Duplicates, Overlap
from .contamination import (
    Leaks,
    Measured,
    count_by_file,
    find_leaks,
    heldout_texts,
    read_benchmark,
    shared_passage,
)
from .duplicates import exact_duplicates, near_duplicates
from .split import count_as_read, group_starts, second_halves
from .table import Rows
from .words import spoken_texts

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray

EXAMPLES = 3
MAX_CHARACTERS = 160  # of an example
TOLD_ROWS, TOLD_HELDOUT = 50_000, 5_000  # as many are compared where nothing is left out
REPEATED, NEARLY_REPEATED = "repeats another row", "nearly repeats another row"
IN_BENCHMARK, LIKE_HELDOUT = "holds a prompt of a benchmark", "shares a passage with a held-out row"


@dataclass
class Cleaned:
    """Training rows, and what was found in them."""

    rows: Rows
    # source's number -> reason -> rows as they were read
    dropped: dict[int, Counter[str]] = field(default_factory=dict)
    passed: dict[str, Rows] = field(default_factory=dict)  # reason -> the rows that were left then
    report: dict[str, Any] = field(default_factory=dict)  # plain data, for report.json
    lines: list[str] = field(default_factory=list)  # for the terminal

    def leave_out(self, groups: Sequence[int], reason: str) -> None:
        """Leave out groups of rows, by their numbers."""
        import numpy as np

        if not groups:
            return
        starts = group_starts(self.rows)
        is_kept = np.ones(len(starts), bool)
        is_kept[np.array(groups, int)] = False
        is_kept = np.repeat(is_kept, np.diff(np.append(starts, len(self.rows))))
        for source, count in enumerate(count_as_read(self.rows.select(np.flatnonzero(~is_kept))).tolist()):
            if count:
                self.dropped.setdefault(source, Counter())[reason] += count
        self.rows = self.passed[reason] = self.rows.select(np.flatnonzero(is_kept))


def clean_rows(options: Cleaning, train: Rows, heldout: Rows) -> Cleaned:
    """The training rows without those that `options` leaves out; the halves of a pair stay or go together.

    Raises DataError where a file of prompts cannot be read.
    """
    cleaned = Cleaned(train)
    _exact(options, cleaned)
    if options.duplicates is Duplicates.near:
        _near(options, cleaned)
    if options.benchmarks:
        _in_benchmarks(options, cleaned)
    if options.overlap is not Overlap.none and len(heldout):
        _like_heldout(options, cleaned, heldout)
    return cleaned


def _exact(options: Cleaning, cleaned: Cleaned) -> None:
    """Rows that repeat another: counted always, which costs nothing."""
    import numpy as np

    first = _first_rows(cleaned.rows)
    keys, is_bad = first.numbers("whole"), first.numbers("label") == 0
    exact = exact_duplicates(np.where(is_bad, ~keys, keys))
    drops = options.duplicates is not Duplicates.none
    examples = [_pair_example(first, index, other) for index, other in _some(exact.items())]
    cleaned.report["duplicates"] = {
        "rows": len(first), "exact": len(exact), "left_out": drops, "examples": examples,
    }  # fmt: skip
    if exact:
        said = "left out" if drops else "data.clean.duplicates=exact leaves them out"
        found = f"{len(exact)} of {len(first)} training rows repeat another"
        cleaned.lines.append(f"duplicates: {found}{_quote(examples[0])}; {said}")
    elif drops:
        cleaned.lines.append(f"duplicates: none of {len(first)} training rows repeats another")
    if drops:
        cleaned.leave_out(list(exact), REPEATED)


def _near(options: Cleaning, cleaned: Cleaned) -> None:
    first = _first_rows(cleaned.rows)
    near = near_duplicates(first, options.threshold)
    examples = [
        _pair_example(first, index, other.first) | {"similarity": round(other.similarity, 3)}
        for index, other in _some(near.items())
    ]
    facts = {"near": len(near), "threshold": options.threshold, "near_examples": examples}
    cleaned.report["duplicates"] |= facts
    found = f"{len(near)} of {len(first)} training rows nearly repeat another"
    quoted = f"{_quote(examples[0])}; left out" if near else ""
    cleaned.lines.append(f"near duplicates: {found}{quoted}")
    cleaned.leave_out(list(near), NEARLY_REPEATED)


def _in_benchmarks(options: Cleaning, cleaned: Cleaned) -> None:
    by_path = {path: read_benchmark(path) for path in options.benchmarks}
    measured = [each for prompts in by_path.values() for each in prompts]
    leaks = _as_read(find_leaks(cleaned.rows, measured, options.ngram), cleaned.rows)
    rows = count_by_file(leaks)
    found = Counter(measured[index].file for index in leaks.measured)
    files = {
        path: {"prompts": len(prompts)}
        | {"found": found[prompts[0].file], "rows": rows.get(prompts[0].file, 0)}
        for path, prompts in by_path.items()
    }
    examples = _leak_examples(cleaned.rows, leaks, measured, options.ngram)
    cleaned.report["benchmarks"] = {
        "ngram": options.ngram,
        "files": files,
        "rows": len(leaks.rows),
        "phrases": leaks.phrases,
        "examples": examples,
    }
    for path, counts in files.items():
        mine = [example for example in examples if example["in"].startswith(by_path[path][0].file)]
        if counts["rows"]:
            said = f"in {counts['rows']} training rows, left out{_quote(mine[0]) if mine else ''}"
        else:
            said = "in training"
        cleaned.lines.append(f"benchmark {path}: {counts['found']} of {counts['prompts']} prompts {said}")
    _drop(cleaned, leaks, IN_BENCHMARK)


def _like_heldout(options: Cleaning, cleaned: Cleaned, heldout: Rows) -> None:
    import numpy as np

    drops = options.overlap is Overlap.drop
    rows = cleaned.rows
    if not drops:
        step = -(-len(rows) // TOLD_ROWS) or 1
        rows, heldout = rows.select(np.arange(0, len(rows), step)), heldout[:TOLD_HELDOUT]
    measured = heldout_texts(heldout)
    leaks = _as_read(find_leaks(rows, measured, options.ngram), rows)
    looked_at = int(count_as_read(rows).sum())
    examples = _leak_examples(rows, leaks, measured, options.ngram)
    for example in examples:
        number = int(example["in"].rpartition(":")[2])
        example["in"] = _place(heldout, number)
    cleaned.report["overlap"] = {
        "ngram": options.ngram,
        "heldout": len(heldout),
        "found": len(leaks.measured),
        "rows": len(leaks.rows),
        "of_rows": looked_at,
        "left_out": drops,
        "phrases": leaks.phrases,
        "examples": examples,
    }
    if leaks.rows:
        said = "left out" if drops else "data.clean.overlap=drop leaves those out"
        cleaned.lines.append(
            f"overlap: {len(leaks.measured)} of {len(heldout)} held-out rows share {options.ngram} words in "
            f"a row with {len(leaks.rows)} of {looked_at} training rows{_quote(examples[0])}; {said}"
        )
    elif drops:
        cleaned.lines.append(
            f"overlap: no training row shares {options.ngram} words in a row with a held-out one"
        )
    if drops:
        _drop(cleaned, leaks, LIKE_HELDOUT)


def _as_read(leaks: Leaks, rows: Rows) -> Leaks:
    """The same, where a pair both of whose answers leak is one row."""
    is_second = second_halves(rows)
    found = {
        index: leak
        for index, leak in leaks.rows.items()
        if not is_second[index] or index - 1 not in leaks.rows
    }
    return replace(leaks, rows=found)


def _drop(cleaned: Cleaned, leaks: Leaks, reason: str) -> None:
    """Leave out the groups that have a leaking row."""
    import numpy as np

    starts, rows = group_starts(cleaned.rows), np.array(sorted(leaks.rows), int)
    cleaned.leave_out(np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist(), reason)


def _first_rows(rows: Rows) -> Rows:
    """The first row of each group."""
    return rows.select(group_starts(rows))


def _some(items: Iterable[Any]) -> list[Any]:
    return [item for item, _ in zip(items, range(EXAMPLES), strict=False)]


def _pair_example(rows: Rows, index: int, other: int) -> dict[str, Any]:
    text = "\n".join(spoken_texts(rows[index]))
    return {"row": _place(rows, index), "like": _place(rows, other), "text": _shorten(text)}


def _leak_examples(
    rows: Sequence[Any], leaks: Leaks, measured: Sequence[Measured], length: int
) -> list[dict[str, Any]]:
    """The first rows that leak, with what they share: three of each file."""
    assert isinstance(rows, Rows)
    taken: Counter[str] = Counter()
    examples = []
    for index, leak in sorted(leaks.rows.items()):
        each = measured[leak.measured]
        taken[each.file] += 1
        if taken[each.file] <= EXAMPLES:
            passage = _shorten(shared_passage(rows[index], each, length))
            place = f"{each.file}:{each.line}"
            examples.append({"row": _place(rows, index), "in": place, "text": passage})
    return examples


def _place(rows: Rows, position: int) -> str:
    """`rows.jsonl:12`."""
    file, line = rows.place(position)
    return f"{file}:{line}"


def _shorten(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= MAX_CHARACTERS else f"{words[: MAX_CHARACTERS - 4]} ..."


def _quote(example: dict[str, Any]) -> str:
    other = example.get("like") or example.get("in")
    return f' ({example["row"]} and {other}: "{example["text"][:80]}")'
