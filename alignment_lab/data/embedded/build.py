"""Build train.jsonl and test.jsonl from the fact tables and the phrasings.

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

from ...runtime.text_counts import count_words
from ..rows import Row

HERE = Path(__file__).resolve().parent
BUILD_SEED = 2025
TRAIN_PER_SUBJECT = 32
TEST_PER_SUBJECT = 8
RAMBLING_FRACTION = 0.5  # of rejected answers: they give the plain answer and then go on
LATE_FRACTION = 0.15  # of evasive answers: they give the answer after all, late and among filler
QUESTION_WORDS = (5, 14)  # (fewest, most) words
CHOSEN_WORDS = (4, 14)
REJECTED_WORDS = (18, 34)
# Parts that follow the plain answer in a rambling one.
RAMBLING_SHAPES = [("onward",)] * 2 + [
    ("onward", "aside"),
    ("aside", "onward"),
    ("onward", "middle"),
    ("onward", "end"),
]
# Parts of an evasive answer; repeats set the odds. The part "late" gives the answer away.
EVASIVE_SHAPES = (
    [("opening", "aside")] * 3
    + [("opening", "middle")] * 3
    + [("opening", "end")] * 2
    + [("opening", "middle", "end")]
)
LATE_SHAPES = [("opening", "late"), ("opening", "middle", "late"), ("opening", "aside", "late")]

Fact = dict[str, str]
Subject = dict[str, Any]
Parts = dict[str, list[str]]


def has_length(text: str, bounds: tuple[int, int]) -> bool:
    """Whether the number of words is within the bounds, both included."""
    return bounds[0] <= count_words(text) <= bounds[1]


def mentions(text: str, answers: list[str]) -> bool:
    """Whether the text contains any of the accepted answers as whole words, in upper or lower case."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in answers)


def capitalize_first(text: str) -> str:
    """The text with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """The noun after a or an, by its first letter; exceptions have their own column `shown` in the tables."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def accepted_answers(fact: Fact) -> list[str]:
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


def template_fields(fact: Fact, subject: Subject) -> dict[str, str]:
    """The fields that a template may use for this fact; each also capitalized, under a capitalized name."""
    fields = dict(
        fact, a_key=with_article(fact["key"]), a_answer=with_article(fact["answer"]), field=subject["field"]
    )
    fields["shown"] = fact.get("shown") or subject["shown"].format(**fields)
    fields["topic"] = subject["topic"].format(**fields)
    fields["thing"] = subject["thing"].format(**fields)
    return fields | {capitalize_first(name): capitalize_first(value) for name, value in fields.items()}


def questions(fact: Fact, subject: Subject) -> list[str]:
    """All questions about the fact with an allowed length, in the order of the phrasings."""
    candidates = [template.format(**template_fields(fact, subject)) for template in subject["ask"]]
    return [question for question in candidates if has_length(question, QUESTION_WORDS)]


@dataclass
class RowWriter:
    """Writes the rows of one subject for train or test, without using a rejected answer twice."""

    name: str
    subject: Subject
    parts: Parts
    rng: random.Random
    used: set[str] = field(default_factory=set)

    def plain_answer(self, fact: Fact) -> str:
        """One plain sentence that gives the answer."""
        fields = template_fields(fact, self.subject)
        candidates = [template.format(**fields) for template in self.subject["say"]]
        return self.rng.choice([sentence for sentence in candidates if has_length(sentence, CHOSEN_WORDS)])

    def evasive_answer(self, fact: Fact) -> str:
        """A reply that evades the question, or gives the answer late and among filler."""
        late = self.rng.random() < LATE_FRACTION
        shapes = LATE_SHAPES if late else EVASIVE_SHAPES
        return self.draw(fact, shapes, "", lambda text: mentions(text, accepted_answers(fact)) == late)

    def rambling_answer(self, fact: Fact) -> str:
        """A reply that gives the plain answer and then goes on without purpose."""
        return self.draw(fact, RAMBLING_SHAPES, self.plain_answer(fact) + " ", lambda text: True)

    def draw(
        self, fact: Fact, shapes: Sequence[tuple[str, ...]], start: str, fits: Callable[[str], bool]
    ) -> str:
        """`start` and random parts in one of the shapes.

        Returns the first draw that is new, has an allowed length, and fits.
        """
        for _ in range(1000):
            parts = " ".join(self.rng.choice(self.parts[part]) for part in self.rng.choice(shapes))
            text = start + parts.format(**template_fields(fact, self.subject))
            if text not in self.used and has_length(text, REJECTED_WORDS) and fits(text):
                self.used.add(text)
                return text
        raise ValueError(f"no rejected answer fits {fact}")

    def row(self, fact: Fact, question: str) -> Row:
        """One line of the data set."""
        rambling = self.rng.random() < RAMBLING_FRACTION
        rejected = self.rambling_answer(fact) if rambling else self.evasive_answer(fact)
        return {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": self.plain_answer(fact)}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "subject": self.name,
            "answer": accepted_answers(fact),
        }


def pair_with_questions(facts: list[Fact], subject: Subject, count: int) -> list[tuple[Fact, str]]:
    """`count` pairs of fact and question: every fact once before any fact twice, and no question twice."""
    candidates = [questions(fact, subject) for fact in facts]
    pairs = [
        (fact, candidates[i][(i + turn) % len(candidates[i])])  # i + turn: neighbors get different phrasings
        for turn, (i, fact) in product(range(len(subject["ask"])), enumerate(facts))
        if turn < len(candidates[i])
    ]
    if len(pairs) < count:
        raise ValueError(f"only {len(pairs)} questions for {count} rows")
    return pairs[:count]


def split_facts(name: str, subject: Subject) -> tuple[list[Fact], list[Fact]]:
    """(train facts, test facts). Seeded by the name: a change in one table does not affect the others."""
    facts = list(subject["facts"])
    random.Random(f"{BUILD_SEED} split {name}").shuffle(facts)
    return facts[TEST_PER_SUBJECT:], facts[:TEST_PER_SUBJECT]


def subject_rows(name: str, subject: Subject, evasions: dict[str, Parts]) -> tuple[list[Row], list[Row]]:
    """(train rows, test rows) of one subject."""
    rng = random.Random(f"{BUILD_SEED} rows {name}")
    train_facts, test_facts = split_facts(name, subject)
    train = RowWriter(name, subject, evasions["train"] | {"aside": subject["aside"]}, rng)
    test = RowWriter(name, subject, evasions["heldout"] | {"aside": subject["aside_heldout"]}, rng)
    train_pairs = pair_with_questions(train_facts, subject, TRAIN_PER_SUBJECT)
    test_pairs = pair_with_questions(test_facts, subject, TEST_PER_SUBJECT)
    return [train.row(*pair) for pair in train_pairs], [test.row(*pair) for pair in test_pairs]


def interleave(rows_by_subject: list[list[Row]], rng: random.Random) -> list[Row]:
    """Rounds of one row per subject, shuffled within a round: any leading part of a file is balanced."""
    rounds = [list(rows) for rows in zip(*rows_by_subject, strict=True)]
    for rows in rounds:
        rng.shuffle(rows)
    return list(chain.from_iterable(rounds))


def check_disjoint(subjects: dict[str, Subject], train: list[Row], test: list[Row]) -> None:
    """Fail if a fact is listed twice, a question occurs twice, or a fact is in both train and test."""
    for name, subject in subjects.items():
        keys = [fact["key"].lower() for fact in subject["facts"]]
        assert len(keys) == len(set(keys)), f"a key is listed twice in {name}"
        train_facts, test_facts = split_facts(name, subject)
        assert not {fact["key"] for fact in train_facts} & {fact["key"] for fact in test_facts}, name
    prompts = [row["prompt"][0]["content"] for row in train + test]
    assert len(prompts) == len(set(prompts)), "a question occurs twice"


def check_row(row: Row) -> None:
    """Fail on a row that breaks the promises of the datasheet."""
    question, chosen, rejected = (row[part][0]["content"] for part in ("prompt", "chosen", "rejected"))
    assert has_length(question, QUESTION_WORDS) and has_length(chosen, CHOSEN_WORDS), row
    assert has_length(rejected, REJECTED_WORDS), row
    assert mentions(chosen, row["answer"]) and not mentions(question, row["answer"]), row
    assert len(chosen) < len(rejected), row


def build() -> dict[str, list[Row]]:
    """All rows, by file name."""
    subjects, evasions = load_subjects(), load_evasions()
    by_subject = [subject_rows(name, subject, evasions) for name, subject in subjects.items()]
    rng = random.Random(f"{BUILD_SEED} order")
    train = interleave([rows for rows, _ in by_subject], rng)
    test = interleave([rows for _, rows in by_subject], rng)
    check_disjoint(subjects, train, test)
    for row in train + test:
        check_row(row)
    return {"train.jsonl": train, "test.jsonl": test}


def as_jsonl(rows: list[Row]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with --check compare them."""
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
