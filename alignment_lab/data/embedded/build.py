"""Builds train.jsonl and test.jsonl from the fact tables and the phrasings; needs only the standard library.

python -m alignment_lab.data.embedded.build            # write both files
python -m alignment_lab.data.embedded.build --check    # exit 1 if the files on disk differ
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEED = 2025
TRAIN_PER_SUBJECT = 32
TEST_PER_SUBJECT = 8
RAMBLING_SHARE = 0.5  # share of rejected answers that give the plain answer and then do not stop
LATE_SHARE = 0.15  # share of the evasive ones that do give the answer, late and wrapped in talk
QUESTION_WORDS = (5, 14)
CHOSEN_WORDS = (4, 14)
REJECTED_WORDS = (18, 34)
# What follows the plain answer in a rambling one.
ONWARD_SHAPES = [("onward",)] * 2 + [
    ("onward", "aside"),
    ("aside", "onward"),
    ("onward", "middle"),
    ("onward", "end"),
]
# How an evasive answer is put together; repeats set the odds. The last part is "late" in the answers that give it away.
SHAPES = (
    [("opening", "aside")] * 3
    + [("opening", "middle")] * 3
    + [("opening", "end")] * 2
    + [("opening", "middle", "end")]
)
LATE_SHAPES = [("opening", "late"), ("opening", "middle", "late"), ("opening", "aside", "late")]

Fact = dict[str, str]
Row = dict[str, Any]
Subject = dict[str, Any]
Parts = dict[str, list[str]]


def words(text: str) -> int:
    """Number of words, split on white space."""
    return len(text.split())


def within(text: str, bounds: tuple[int, int]) -> bool:
    """Whether the text has a number of words inside the bounds, both included."""
    return bounds[0] <= words(text) <= bounds[1]


def mentions(text: str, answers: list[str]) -> bool:
    """Whether any accepted answer stands in the text as a whole word, upper or lower case."""
    return any(re.search(rf"(?<!\w){re.escape(a)}(?!\w)", text, re.IGNORECASE) for a in answers)


def capital(text: str) -> str:
    """The text with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """The noun after a or an; the tables hold no noun for which the first letter misleads, unless `shown` says so."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def accepted(fact: Fact) -> list[str]:
    """The answer and its other accepted spellings, the main one first."""
    return [fact["answer"], *filter(None, fact["also"].split("|"))]


def load_subjects() -> dict[str, Subject]:
    """Phrasings of every subject, with its facts under the key `facts`."""
    subjects = tomllib.loads((HERE / "phrasings.toml").read_text(encoding="utf-8"))
    for name, subject in subjects.items():
        with (HERE / "facts" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            subject["facts"] = list(csv.DictReader(file))
    return subjects


def load_evasions() -> dict[str, Parts]:
    """Parts of rejected answers: {"train": {"opening": [...], ...}, "heldout": {...}}."""
    return tomllib.loads((HERE / "evasions.toml").read_text(encoding="utf-8"))


def slots(fact: Fact, subject: Subject) -> dict[str, str]:
    """Everything a template may name for this fact, each also with a capital first letter under a capital name."""
    named = dict(
        fact, a_key=with_article(fact["key"]), a_answer=with_article(fact["answer"]), field=subject["field"]
    )
    named["shown"] = fact.get("shown") or subject["shown"].format(**named)
    named["topic"] = subject["topic"].format(**named)
    named["thing"] = subject["thing"].format(**named)
    return named | {capital(name): capital(value) for name, value in named.items()}


def questions(fact: Fact, subject: Subject) -> list[str]:
    """All questions about the fact that have an allowed length, in the order of the phrasings."""
    asked = [template.format(**slots(fact, subject)) for template in subject["ask"]]
    return [question for question in asked if within(question, QUESTION_WORDS)]


@dataclass
class Writer:
    """Writes the rows of one subject in one part of the data, and remembers what it has used."""

    name: str
    subject: Subject
    parts: Parts
    rng: random.Random
    used: set[str] = field(default_factory=set)

    def plain_answer(self, fact: Fact) -> str:
        """One plain sentence that gives the answer."""
        said = [template.format(**slots(fact, self.subject)) for template in self.subject["say"]]
        return self.rng.choice([sentence for sentence in said if within(sentence, CHOSEN_WORDS)])

    def evasive_answer(self, fact: Fact) -> str:
        """A reply that dodges the question, or lets the answer slip late and wrapped in talk."""
        late = self.rng.random() < LATE_SHARE
        return self.drawn(
            fact, LATE_SHAPES if late else SHAPES, "", lambda text: mentions(text, accepted(fact)) == late
        )

    def rambling_answer(self, fact: Fact) -> str:
        """A reply that gives the plain answer and then goes on to no purpose."""
        return self.drawn(fact, ONWARD_SHAPES, self.plain_answer(fact) + " ", lambda text: True)

    def drawn(
        self, fact: Fact, shapes: Sequence[tuple[str, ...]], start: str, fits: Callable[[str], bool]
    ) -> str:
        """`start` and parts in one of the shapes, drawn again until the text is new, has an allowed length, and fits."""
        for _ in range(1000):
            parts = " ".join(self.rng.choice(self.parts[part]) for part in self.rng.choice(shapes))
            text = start + parts.format(**slots(fact, self.subject))
            if text not in self.used and within(text, REJECTED_WORDS) and fits(text):
                self.used.add(text)
                return text
        raise ValueError(f"no rejected answer fits {fact}")

    def row(self, fact: Fact, question: str) -> Row:
        """One line of the data set."""
        rejected = (
            self.rambling_answer(fact) if self.rng.random() < RAMBLING_SHARE else self.evasive_answer(fact)
        )
        return {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": self.plain_answer(fact)}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "subject": self.name,
            "answer": accepted(fact),
        }


def spread(facts: list[Fact], subject: Subject, count: int) -> list[tuple[Fact, str]]:
    """`count` pairs of fact and question: every fact once before any fact twice, and no question twice."""
    asked = [questions(fact, subject) for fact in facts]
    pairs = [
        (fact, asked[i][(i + turn) % len(asked[i])])  # i + turn: neighbours get different phrasings
        for turn, (i, fact) in product(range(len(subject["ask"])), enumerate(facts))
        if turn < len(asked[i])
    ]
    if len(pairs) < count:
        raise ValueError(f"only {len(pairs)} questions for {count} rows")
    return pairs[:count]


def split_facts(name: str, subject: Subject) -> tuple[list[Fact], list[Fact]]:
    """Train and test facts of a subject. Seeded by the subject's name, so a change in one table leaves the others alone."""
    facts = list(subject["facts"])
    random.Random(f"{SEED} split {name}").shuffle(facts)
    return facts[TEST_PER_SUBJECT:], facts[:TEST_PER_SUBJECT]


def subject_rows(name: str, subject: Subject, evasions: dict[str, Parts]) -> tuple[list[Row], list[Row]]:
    """Train rows and test rows of one subject."""
    rng = random.Random(f"{SEED} rows {name}")
    train_facts, test_facts = split_facts(name, subject)
    train = Writer(name, subject, evasions["train"] | {"aside": subject["aside"]}, rng)
    test = Writer(name, subject, evasions["heldout"] | {"aside": subject["aside_heldout"]}, rng)
    return (
        [train.row(fact, question) for fact, question in spread(train_facts, subject, TRAIN_PER_SUBJECT)],
        [test.row(fact, question) for fact, question in spread(test_facts, subject, TEST_PER_SUBJECT)],
    )


def in_rounds(columns: list[list[Row]], rng: random.Random) -> list[Row]:
    """Rows in rounds of one row per subject, shuffled inside a round, so that any leading part of a file is balanced."""
    rounds = [list(row) for row in zip(*columns, strict=True)]
    for row in rounds:
        rng.shuffle(row)
    return list(chain.from_iterable(rounds))


def check_disjoint(subjects: dict[str, Subject], train: list[Row], test: list[Row]) -> None:
    """Stops the build if a fact is listed twice or a question or a fact of the test part occurs in the training part."""
    for name, subject in subjects.items():
        keys = [fact["key"].lower() for fact in subject["facts"]]
        assert len(keys) == len(set(keys)), f"a key is listed twice in {name}"
        train_facts, test_facts = split_facts(name, subject)
        assert not {fact["key"] for fact in train_facts} & {fact["key"] for fact in test_facts}, name
    asked = [row["prompt"][0]["content"] for row in train + test]
    assert len(asked) == len(set(asked)), "a question occurs twice"


def check_row(row: Row) -> None:
    """Stops the build on a row that breaks the promises of the datasheet."""
    question, chosen, rejected = (row[part][0]["content"] for part in ("prompt", "chosen", "rejected"))
    assert (
        within(question, QUESTION_WORDS) and within(chosen, CHOSEN_WORDS) and within(rejected, REJECTED_WORDS)
    ), row
    assert mentions(chosen, row["answer"]) and not mentions(question, row["answer"]), row
    assert len(chosen) < len(rejected), row


def build() -> dict[str, list[Row]]:
    """All rows of both parts, by file name."""
    subjects, evasions = load_subjects(), load_evasions()
    built = [subject_rows(name, subject, evasions) for name, subject in subjects.items()]
    rng = random.Random(f"{SEED} order")
    train = in_rounds([rows for rows, _ in built], rng)
    test = in_rounds([rows for _, rows in built], rng)
    check_disjoint(subjects, train, test)
    for row in train + test:
        check_row(row)
    return {"train.jsonl": train, "test.jsonl": test}


def as_jsonl(rows: list[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Writes the files, or with --check compares them."""
    parser = argparse.ArgumentParser(description="Build the embedded preference data.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args(argv).check
    stale = []
    for name, rows in build().items():
        path, text = HERE / name, as_jsonl(rows)
        if check and (not path.exists() or path.read_bytes() != text.encode()):
            stale.append(name)
        elif not check:
            path.write_bytes(text.encode())
    print(f"out of date: {', '.join(stale)}" if stale else "up to date" if check else f"wrote {HERE}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
