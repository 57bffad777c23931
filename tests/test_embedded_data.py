"""The embedded preference data keeps the promises of its datasheet."""

from __future__ import annotations

import json
import re
from collections import Counter
from statistics import median

import pytest

from alignment_lab.data.embedded import build as builder

PARTS = ("train", "test")
RAW = {part: (builder.HERE / f"{part}.jsonl").read_text(encoding="utf-8") for part in PARTS}
ROWS = {part: [json.loads(line) for line in RAW[part].splitlines()] for part in PARTS}
ALL = ROWS["train"] + ROWS["test"]
SUBJECTS = builder.load_subjects()
EVASIONS = builder.load_evasions()
README = (builder.HERE / "README.md").read_text(encoding="utf-8")


def content(row: dict, field: str) -> str:
    """The content of the one message in a field of a row."""
    (message,) = row[field]
    return message["content"]


def lengths(part: str, field: str) -> list[int]:
    """The number of words in a field, for each row of a part."""
    return [builder.count_words(content(row, field)) for row in ROWS[part]]


def kind(row: dict) -> str:
    """Whether the rejected answer never gives the fact, gives it late, or begins with it."""
    text = content(row, "rejected")
    if builder.mentions(text.split(". ")[0], row["answer"]):
        return "rambling"
    return "late" if builder.mentions(text, row["answer"]) else "evasive"


def kinds(part: str) -> Counter:
    """The number of rejected answers of each kind."""
    return Counter(map(kind, ROWS[part]))


def fixed_text(template: str) -> str:
    """The longest part of a template without a field."""
    return max(re.split(r"\{\w+\}", template), key=len).strip()


def asides(part: str) -> list[str]:
    """The parts of evasive answers that belong to one subject."""
    return [
        text
        for subject in SUBJECTS.values()
        for text in subject["aside" if part == "train" else "aside_heldout"]
    ]


def evasive_parts(part: str) -> list[str]:
    """Every template that rejected answers of a part may draw from."""
    return [
        text for parts in EVASIONS["train" if part == "train" else "heldout"].values() for text in parts
    ] + asides(part)


def test_files_are_what_the_builder_writes():
    written = {name: builder.as_jsonl(rows) for name, rows in builder.build().items()}
    assert written == {f"{part}.jsonl": RAW[part] for part in PARTS}
    assert builder.main(["--check"]) == 0


def test_check_notices_a_changed_file(tmp_path, monkeypatch):
    for name in ("facts", "phrasings.toml", "evasions.toml"):
        (tmp_path / name).symlink_to(builder.HERE / name)
    monkeypatch.setattr(builder, "HERE", tmp_path)
    assert builder.main(["--check"]) == 1
    assert builder.main([]) == 0 and builder.main(["--check"]) == 0
    assert (tmp_path / "train.jsonl").read_text(encoding="utf-8") == RAW["train"]
    (tmp_path / "test.jsonl").write_text(RAW["test"] + "\n", encoding="utf-8")
    assert builder.main(["--check"]) == 1


def test_sizes_and_balance():
    assert len(ROWS["train"]) >= 800 and len(ROWS["test"]) >= 200 and len(SUBJECTS) >= 20
    for part in PARTS:
        assert len(set(Counter(row["subject"] for row in ROWS[part]).values())) == 1
        assert set(Counter(row["subject"] for row in ROWS[part][:64]).values()) == {2}


def test_rows_have_the_fields_and_roles():
    for row in ALL:
        assert list(row) == ["prompt", "chosen", "rejected", "subject", "answer"]
        assert [row[field][0]["role"] for field in ("prompt", "chosen", "rejected")] == [
            "user",
            "assistant",
            "assistant",
        ]
        assert all(len(row[field]) == 1 for field in ("prompt", "chosen", "rejected"))
        assert row["subject"] in SUBJECTS and row["answer"] and all(row["answer"])


def test_no_question_twice():
    repeated = [
        question
        for question, times in Counter(content(row, "prompt").lower() for row in ALL).items()
        if times > 1
    ]
    assert repeated == []


def facts_asked(part: str) -> Counter:
    """How often each (subject, key) is asked, derived from the questions and not from the split."""
    keys = {
        (name, question): fact["key"]
        for name, subject in SUBJECTS.items()
        for fact in subject["facts"]
        for question in builder.questions(fact, subject)
    }
    return Counter((row["subject"], keys[row["subject"], content(row, "prompt")]) for row in ROWS[part])


def test_no_fact_in_both_parts():
    train, test = facts_asked("train"), facts_asked("test")
    assert not train & test
    assert set(test.values()) == {1} and set(train.values()) == {1, 2}
    assert set(train | test) == {
        (name, fact["key"]) for name, subject in SUBJECTS.items() for fact in subject["facts"]
    }


def test_no_fact_in_reverse():
    for name in ("opposites", "calendar", "arithmetic"):
        pairs = Counter()
        for fact in SUBJECTS[name]["facts"]:
            operation = re.search(r"plus|times", fact["key"])
            pairs[
                (*tuple(sorted(re.findall(r"\d+", fact["key"]))), operation[0]) if operation else fact["key"]
            ] += 1
        assert max(pairs.values()) == 1
    keys = {fact["key"] for fact in SUBJECTS["opposites"]["facts"]}
    assert not keys & {fact["answer"] for fact in SUBJECTS["opposites"]["facts"]}
    steps = [
        re.fullmatch(r"the \w+ (after|before) (\w+)", fact["key"]) for fact in SUBJECTS["calendar"]["facts"]
    ]
    ends = [
        sorted((step[2], fact["answer"]))
        for step, fact in zip(steps, SUBJECTS["calendar"]["facts"], strict=True)
        if step
    ]
    assert len(ends) == len({tuple(pair) for pair in ends}) > 5


@pytest.mark.parametrize("part", PARTS)
def test_answer_is_in_chosen_and_not_in_question(part):
    for row in ROWS[part]:
        assert builder.mentions(content(row, "chosen"), row["answer"][:1]), row
        assert not builder.mentions(content(row, "prompt"), row["answer"]), row


def test_mentions_needs_whole_words_and_ignores_case():
    assert builder.mentions("It is paris.", ["Lyon", "Paris"]) and builder.mentions("It is 100.", ["100"])
    assert not builder.mentions("comparisons", ["Paris"]) and not builder.mentions("It is 1000.", ["100"])


def test_chosen_is_one_plain_sentence():
    for row in ALL:
        assert re.fullmatch(r"[A-Z0-9][^.!?;:]*\.", content(row, "chosen")), content(row, "chosen")


def test_questions_end_as_they_should():
    for row in ALL:
        is_question = not content(row, "prompt").startswith(("Name ", "Give ", "Please ", "Tell me "))
        assert re.fullmatch(r"[A-Z0-9][^.!?]*" + (r"\?" if is_question else r"\."), content(row, "prompt")), (
            content(row, "prompt")
        )


@pytest.mark.parametrize("part", PARTS)
def test_lengths(part):
    for field, low, high in (("prompt", 5, 14), ("chosen", 4, 14), ("rejected", 18, 40)):
        assert low <= min(lengths(part, field)) and max(lengths(part, field)) <= high
    for row in ROWS[part]:
        assert builder.count_words(content(row, "chosen")) < builder.count_words(content(row, "rejected"))
        assert len(content(row, "chosen")) < len(content(row, "rejected"))


@pytest.mark.parametrize("part", PARTS)
def test_rejected_answers_are_of_three_kinds_and_distinct(part):
    count = kinds(part)
    assert 0.4 < count["rambling"] / len(ROWS[part]) < 0.6
    assert 0.05 < count["late"] / len(ROWS[part]) < 0.15
    assert len({content(row, "rejected") for row in ALL}) == len(ALL)


def test_heldout_parts_are_unused_in_train():
    for part, other in (("train", "test"), ("test", "train")):
        text = "\n".join(content(row, "rejected") for row in ROWS[part])
        assert [template for template in evasive_parts(other) if fixed_text(template) in text] == []


def test_a_third_of_the_parts_is_held_out():
    heldout = len(evasive_parts("test"))
    assert 0.3 < heldout / (heldout + len(evasive_parts("train"))) < 0.37


def test_text_is_clean():
    for text in [
        RAW["train"],
        RAW["test"],
        *(path.read_text(encoding="utf-8") for path in builder.HERE.glob("facts/*.csv")),
    ]:
        assert text.endswith("\n") and "\r" not in text and "\ufffd" not in text
    for row in ALL:
        for field in ("prompt", "chosen", "rejected"):
            text = content(row, field)
            assert (
                text.isascii() and text == " ".join(text.split()) and not re.search(r"[{}]| [.,?]", text)
            ), text
            assert not re.search(r"\b(\w+) \1\b", text, re.I), text
            assert not re.search(r"\ba [aeio]|\ban (?!hour)[^aeiou]", text), text


def test_tables_match_the_phrasings():
    assert {path.stem for path in builder.HERE.glob("facts/*.csv")} == set(SUBJECTS)
    for name, subject in SUBJECTS.items():
        assert len(subject["aside"]) == 2 * len(subject["aside_heldout"]), name
        for fact in subject["facts"]:
            assert None not in fact and None not in fact.values() and fact["key"] and fact["answer"], (
                name,
                fact,
            )


def test_datasheet_composition_is_true():
    for name, subject in SUBJECTS.items():
        train, test = (sum(row["subject"] == name for row in ROWS[part]) for part in PARTS)
        assert f"| {name} | {len(subject['facts'])} | {train} | {test} |" in README
    facts = sum(len(subject["facts"]) for subject in SUBJECTS.values())
    assert f"| all {len(SUBJECTS)} | {facts} | {len(ROWS['train'])} | {len(ROWS['test'])} |" in README


@pytest.mark.parametrize("part", PARTS)
def test_datasheet_figures_are_true(part):
    for name, field in (("question", "prompt"), ("chosen", "chosen"), ("rejected", "rejected")):
        count = lengths(part, field)
        assert f"| {part} | {name} | {min(count)} | {median(count):g} | {max(count)} |" in README
    count = kinds(part)
    assert f"| {part} | {count['evasive']} | {count['late']} | {count['rambling']} |" in README
    parts = evasive_parts(part)
    assert f"| {part} | {len(parts) - len(asides(part))} | {len(asides(part))} | {len(parts)} |" in README


def test_datasheet_examples_are_training_rows():
    text = " ".join(README.split())
    shown = [
        row
        for row in ROWS["train"]
        if f"question {content(row, 'prompt')} chosen {content(row, 'chosen')} rejected" in text
    ]
    assert len(shown) == 2
    assert all(content(row, "rejected") in text for row in shown)
