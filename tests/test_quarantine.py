"""Rows that cannot be used cost no other row: each is told with its place and reason, and the good ones are
as they would be alone, in whatever way they are read and kept.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignment_lab.actions import tokenized
from alignment_lab.config import Experiment
from alignment_lab.data import (
    DataError,
    Splits,
    bad_rows,
    describe_quarantine,
    load_rows,
    loading,
    preparation,
    workers,
)
from alignment_lab.data.quarantine import is_defect
from alignment_lab.data.reasons import Reason
from alignment_lab.models.locate import locate_tokenizer

ROWS, BAD_ROWS = 10_000, 4_000


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def pair(number: int, **columns: Any) -> dict[str, Any]:
    row = {"prompt": f"Where is the {number}th ferry?", "chosen": f"At pier {number}.", "rejected": "Gone."}
    return row | columns


def line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass")


def begun_by_human(number: int) -> dict[str, Any]:
    question = f"\n\nHuman: Is ferry {number} late?\n\nAssistant:"
    return {"chosen": f"{question} Yes.", "rejected": f"{question} No."}


GOOD: list[Callable[[int], dict[str, Any]]] = [
    pair,
    begun_by_human,
    lambda number: pair(number, prompt=[user(f"Ferry {number}?")], margin=number / 2),
    lambda number: pair(number, chosen="Über \U0001f600 \u2028\\", system=None, id=number),
    lambda number: (
        pair(number, chosen=[user(f"Ferry {number}?"), assistant("A")], prompt=None)
        | {"rejected": [user(f"Ferry {number}?"), assistant("B")]}
    ),
    lambda number: {
        "instruction": f"Name ferry {number}.",
        "input": "Be brief.",
        "chosen": "A",
        "rejected": "B",
    },
]


def with_(**columns: Any) -> Callable[[int], bytes]:
    return lambda number: line(pair(number, **columns))


def answered(*turns: Any) -> Callable[[int], bytes]:
    return with_(chosen=list(turns))


BAD: dict[str, tuple[Callable[[int], bytes], Reason]] = {
    "cut": (lambda number: line(pair(number))[:-9], Reason.unreadable),
    "not UTF-8": (lambda number: line(pair(number)).replace(b"Gone", b"G\xf6ne"), Reason.unreadable),
    "two in a line": (lambda number: line(pair(number)) * 2, Reason.unreadable),
    "no JSON": (lambda number: b"prompt: Where?", Reason.unreadable),
    "a NUL": (lambda number: b"\0" * 9, Reason.unreadable),
    "nested": (lambda number: b'{"prompt": ' + b"[" * 3000, Reason.unreadable),
    "a number of many digits": (lambda number: b'{"prompt": ' + b"7" * 5000 + b"}", Reason.unreadable),
    "null": (lambda number: b"null", Reason.not_a_row),
    "a list": (lambda number: line([pair(number)]), Reason.not_a_row),
    "text": (lambda number: line("Where?"), Reason.not_a_row),
    "a number": (lambda number: line(number), Reason.not_a_row),
    "true": (lambda number: b"true", Reason.not_a_row),
    "no column": (lambda number: b"{}", Reason.missing_column),
    "chosen is null": (with_(chosen=None), Reason.missing_column),
    "chosen is a number": (with_(chosen=3), Reason.not_text),
    "prompt is a number": (with_(prompt=-0.5), Reason.not_text),
    "system is a list": (with_(system=[1]), Reason.not_text),
    "chosen holds numbers": (with_(chosen=[1, 2]), Reason.not_messages),
    "a message is null": (answered(None), Reason.not_messages),
    "an unknown role": (answered({"role": "narrator", "content": "A"}), Reason.unknown_role),
    "no role": (answered({"speaker": "ferryman", "content": "A"}), Reason.unknown_role),
    "a role that is a list": (answered({"role": ["assistant"], "content": "A"}), Reason.unknown_role),
    "no content": (answered({"role": "assistant", "text": "A"}), Reason.no_content),
    "content is a number": (answered(assistant(7)), Reason.bad_content),
    "a part of another kind": (answered(assistant([{"type": "refusal"}])), Reason.bad_content),
    "a picture": (with_(prompt=[user([{"type": "image_url"}])]), Reason.media),  # type: ignore[arg-type]
    "pictures": (with_(images=["pier.png"]), Reason.media),
    "the user speaks last": (answered(assistant("A"), user("Why?")), Reason.not_an_answer),
    "half a weight": (answered(assistant("A", weight=0.5)), Reason.bad_weight),
    "a call of nothing": (answered(assistant("", tool_calls=[{"arguments": {}}])), Reason.bad_tools),
    "tools are text": (with_(tools="ferry"), Reason.bad_tools),
    "arguments of the template in a list": (with_(chat_template_kwargs=[1]), Reason.bad_kwargs),
    "a margin of words": (with_(margin="much"), Reason.bad_number),
    "a margin that is no number": (with_(margin=float("nan")), Reason.bad_number),
    "a template": (with_(prompt="<|im_start|>user\nQ<|im_end|>\n"), Reason.templated),
    "no prompt": (with_(prompt=[]), Reason.no_prompt),
    "an empty answer": (with_(chosen=" \n"), Reason.empty),
    "an empty prompt": (with_(prompt=""), Reason.empty),
    "equal answers": (with_(rejected="A", chosen="A"), Reason.equal_answers),
}  # fmt: skip


def mixed(good: int, bad: int) -> tuple[list[bytes], list[tuple[int, Reason]]]:
    """(lines, the line and reason of each bad one): of every kind as many, in an order of chance, with blank
    lines among them.
    """
    kinds = list(BAD.values())
    order = [True] * good + [False] * bad
    random.Random(bad).shuffle(order)
    lines: list[bytes] = []
    expected: list[tuple[int, Reason]] = []
    for number, is_good in enumerate(order):
        if number % 1000 == 17:
            lines.append(b" ")
        if is_good:
            lines.append(line(GOOD[number % len(GOOD)](number)))
            continue
        make, reason = kinds[len(expected) % len(kinds)]
        lines.append(make(number))
        expected.append((len(lines), reason))
    return lines, expected


def write(file: Path, lines: list[bytes]) -> Path:
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def good_alone(lines: list[bytes], bad: list[tuple[int, Reason]]) -> list[bytes]:
    numbers = {number for number, _ in bad}
    return [text for number, text in enumerate(lines, start=1) if number not in numbers]


def places(splits: Splits) -> list[tuple[int, Reason]]:
    return [(record.line, record.reason) for part in splits.quarantine for record in part]


@pytest.fixture
def spec_of(composed) -> Callable[..., Experiment]:
    return lambda file, *overrides: composed(
        ["model=tiny", "method=dpo", "data=local", f"data.path={file}", *overrides]
    )


def test_bad_rows_of_every_kind_cost_no_good_one(tmp_path, spec_of):
    lines, bad = mixed(ROWS - BAD_ROWS, BAD_ROWS)
    file, alone = (
        write(tmp_path / "mixed.jsonl", lines),
        write(tmp_path / "good.jsonl", good_alone(lines, bad)),
    )
    splits, expected = load_rows(spec_of(file, "data.bad_rows=drop")), load_rows(spec_of(alone))
    assert places(splits) == bad and len({reason for _, reason in bad}) >= 17
    assert splits.train == expected.train and splits.heldout == expected.heldout
    assert len(splits.train) + len(splits.heldout) == ROWS - BAD_ROWS and not expected.dropped
    assert splits.dropped.total() == BAD_ROWS and splits.read == {"train": ROWS}
    with pytest.raises(DataError) as error:
        load_rows(spec_of(file))
    sentence = str(error.value)
    defects = sum(is_defect(reason) for _, reason in bad)
    assert sentence.count(str(file)) == 4 and "\n" not in sentence and len(sentence) < 1000
    assert f"{defects} of {ROWS} rows cannot be used (" in sentence
    shown = [int(number) for number in re.findall(r"mixed\.jsonl, line (\d+): ", sentence)]
    assert len(shown) == 3 and set(shown) <= {number for number, reason in bad if is_defect(reason)}


@pytest.mark.parametrize("order", [1, -1], ids=["bad first", "bad last"])
def test_any_bad_row_may_be_the_first_or_the_last(order, tmp_path, spec_of):
    """What a file holds is told from its beginning; its last line may have no end."""
    good = [line(pair(number)) for number in range(8)]
    file = write(tmp_path / "rows.jsonl", good)
    spec = spec_of(file, "data.bad_rows=drop")
    expected = load_rows(spec)
    for kind, (make, reason) in BAD.items():
        if order == 1 and kind == "a NUL":
            continue  # then it is taken for no text, and refused
        file.write_bytes(b"\n".join([make(9), *good][::order]))
        splits = load_rows(spec)
        assert places(splits) == [(1 if order == 1 else 9, reason)], kind
        assert sorted(row["prompt"][0]["content"] for row in splits.train + splits.heldout) == sorted(
            row["prompt"][0]["content"] for row in expected.train + expected.heldout
        ), kind


def test_the_source_of_a_bad_row_is_called_what_its_user_calls_it(tmp_path, composed, tokenizer, monkeypatch):
    """Its name in data.sources, else the file, folder or file of held-out rows that is set; of those that the
    template or the length leaves out too.
    """
    monkeypatch.setattr(tokenized, "load_tokenizer", lambda *_: tokenizer)
    (tmp_path / "folder").mkdir()
    bad = [line(pair(number)) for number in range(20)] + [b"{", line(pair(20, prompt="Where? " * 900))]
    files = [write(tmp_path / name, bad) for name in ("a.jsonl", "b.jsonl", "folder/train.jsonl")]
    held = write(tmp_path / "held.jsonl", [line(pair(30)), b"{", line(pair(31))])
    two = [f"+data/source@data.sources.{name}=local" for name in ("mine", "yours")]
    two += [f"data.sources.{name}.path={path}" for name, path in zip(("mine", "yours"), files, strict=False)]
    folder = tmp_path / "folder"
    told = {
        ("data=mixture", *two): {"mine": 2, "yours": 2},
        ("data=local", f"data.path={files[0]}"): {str(files[0]): 2},
        ("data=local", f"data.path={folder}"): {str(folder): 2},
        ("data=local", f"data.path={files[0]}", f"data.eval_path={held}"): {str(files[0]): 2, str(held): 1},
    }
    for options, expected in told.items():
        spec = composed(["model=tiny", "method=kto", "data.bad_rows=drop", *options])
        splits = load_rows(spec)
        tokenized.tokenize(spec, splits, locate_tokenizer(spec.model), Console(quiet=True))
        found = list(bad_rows(spec.data, splits.quarantine))
        assert Counter(row["source"] for row in found) == expected, options
        assert {row["line"] for row in found if row["reason"] == "prompt_too_long"} == {22}
        sentence = describe_quarantine(spec.data, splits.quarantine)
        assert all(
            f"{count} of {name}" in sentence.replace(" rows", "").replace(" row", "")
            for name, count in expected.items()
        )


# ---- many rows: in stretches, by several processes, into a file


@pytest.fixture
def few_are_many(monkeypatch, tmp_path) -> None:
    """Files of some kilobytes are as large ones are; the cache is empty."""
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "cache"))
    for name, value in {"FEW_ROWS": 10, "STRETCH_ROWS": 50, "FEW_BYTES": 0}.items():
        monkeypatch.setattr(preparation, name, value)
    monkeypatch.setattr(loading, "STRETCH_BYTES", 4096)


def later_columns() -> list[bytes]:
    """No converter fits the first rows; another one fits them all than fits the next."""
    texts = [line({"note": f"ferry {number}"}) for number in range(60)]
    return [*texts, *map(line, map(begun_by_human, range(60))), *(line(pair(number)) for number in range(60))]


FILES = {
    "bad rows of every kind": lambda: mixed(150, 80)[0],
    "columns that come late": later_columns,
    "no usable row in a stretch": lambda: [line(pair(0)), *[b"null"] * 2000, line(pair(1)), line(pair(2))],
}


@pytest.mark.parametrize(("content", "method"), [*zip(FILES, ["dpo", "kto", "sft"], strict=True)])
def test_many_rows_are_as_they_would_be_in_memory(content, method, tmp_path, spec_of, monkeypatch, request):
    """By one process and by four, and from the file that they left."""
    file = write(tmp_path / "rows.jsonl", FILES[content]())
    spec = spec_of(file, f"method={method}", "data.bad_rows=drop")
    expected = load_rows(spec)
    request.getfixturevalue("few_are_many")
    for processes in (1, 4):
        monkeypatch.setattr(workers, "_processes", processes)
        monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / f"cache{processes}"))
        for _ in range(2):
            splits = load_rows(spec)
            assert splits.train.table.key and not expected.train.table.key  # in a file, and in memory
            assert splits == expected  # rows, their order, the digest, what was dropped
            assert list(map(list, splits.train)) == list(map(list, expected.train))  # the order of columns
            assert places(splits) == places(expected)
            assert (splits.sources, splits.unused, splits.tables) == (
                expected.sources, expected.unused, expected.tables,
            )  # fmt: skip
    assert len(list(tmp_path.glob("cache*/rows/*"))) == 2


def test_a_cache_that_cannot_be_written_costs_time_and_no_run(tmp_path, spec_of, few_are_many, monkeypatch):
    """Where there is no room at all it is said."""
    monkeypatch.setattr(workers, "_processes", 1)
    spec = spec_of(write(tmp_path / "rows.jsonl", mixed(150, 80)[0]), "data.bad_rows=drop")
    expected = load_rows(spec)
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(write(tmp_path / "in the way", [])))
    assert load_rows(spec) == expected
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "full"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(DataError, match=r"its rows cannot be kept in .* TMPDIR\.$") as error:
            load_rows(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value).startswith("data=local data.path=") and "\n" not in str(error.value)
    assert load_rows(spec) == expected  # nothing half written is found


DAMAGES: dict[str, Callable[[Path], object]] = {
    "rows cut": lambda folder: os.truncate(folder / "rows.arrow", 900),
    "rows gone": lambda folder: (folder / "rows.arrow").unlink(),
    "a bad row gone": lambda folder: (folder / "bad.jsonl").write_text(""),
    "no facts": lambda folder: (folder / "facts.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_prepared_again(damage, tmp_path, spec_of, monkeypatch, request):
    monkeypatch.setattr(workers, "_processes", 1)
    spec = spec_of(write(tmp_path / "rows.jsonl", mixed(150, 80)[0]), "data.bad_rows=drop")
    expected = load_rows(spec)
    request.getfixturevalue("few_are_many")
    load_rows(spec)
    ((folder),) = (tmp_path / "cache/rows").iterdir()
    DAMAGES[damage](folder)
    splits = load_rows(spec)
    assert splits == expected and places(splits) == places(expected)


def test_the_kept_rows_of_a_file_are_those_of_the_settings(tmp_path, composed, few_are_many, monkeypatch):
    """A source of another name shares them; where another rejected answer is asked for it does not."""
    monkeypatch.setattr(workers, "_processes", 1)
    answers = [{"response": text, "overall_score": score} for score, text in enumerate("DCBA")]
    rows = [line({"instruction": f"Ferry {number}?", "completions": answers}) for number in range(60)]
    file = write(tmp_path / "rows.jsonl", [*rows[:30], b"null", *rows[30:]])

    def rejected(*overrides: str) -> set[str]:
        splits = load_rows(composed(["model=tiny", "method=dpo", "data.bad_rows=drop", *overrides]))
        assert [part.source for part in splits.quarantine] == list(splits.unused)
        return {row["rejected"][0]["content"] for row in splits.train}

    alone = ["data=local", f"data.path={file}"]
    mixture = ["data=mixture", "+data/source@data.sources.pier=local", f"data.sources.pier.path={file}"]
    assert rejected(*alone) == rejected(*mixture) == {"D"}
    assert len(list((tmp_path / "cache/rows").iterdir())) == 1
    assert rejected(*alone, "data.rejected=random") == {"B", "C", "D"}
