"""Rows as they stand in files: every kind, every layout, every value; and what cannot be read, said in one
sentence or as a row with a defect.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from alignment_lab.config import Data, DataSource
from alignment_lab.data import DataError, load_rows
from alignment_lab.data.readers import open_rows, source_files, spans, unread_splits
from alignment_lab.data.rows import RawRow

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"prompt": f"Q{number}", "chosen": 'A, "é" \u2028', "rejected": "B\nB" if number % 2 else "NA"}
    for number in range(5)
]


def local(path: Path | str, **settings: Any) -> Data:
    return Data(source=DataSource.local, path=str(path), **settings)


def raw_rows(data: Data, part: str = "train", **options: Any) -> list[RawRow] | None:
    ((name, source),) = data.mixture().items()
    rows = open_rows(source, part, key=partial(data.key, name), **options)
    return None if rows is None else list(rows)


def values(path: Path | str, part: str = "train", **settings: Any) -> list[Any] | None:
    rows = raw_rows(local(path, **settings), part)
    assert rows is None or all(row.defect is None for row in rows)
    return None if rows is None else [row.value for row in rows]


def refusal(path: Path | str, part: str = "train", **settings: Any) -> str:
    """The sentence that refuses a path, which begins with the setting."""
    with pytest.raises(DataError) as error:
        raw_rows(local(path, **settings), part)
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 600
    return sentence


# ---- every kind and layout gives the same rows


def lines(rows: list[Any] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(folder: Path, name: str, delimiter: str = ",") -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / name


def zstd(folder: Path, name: str, times: int = 1) -> Path:
    with pa.CompressedOutputStream(str(folder / name), "zstd") as stream:
        stream.write(lines() * times)
    return folder / name


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def arrow_stream(folder: Path, name: str = "rows.arrow", rows: list[Any] = ROWS) -> Path:
    content = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)
    return folder / name


def parquet_file(folder: Path, name: str = "rows.parquet", rows: list[Any] = ROWS) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=2)
    return folder / name


def feather_file(folder: Path) -> Path:
    feather.write_feather(pa.Table.from_pylist(ROWS), str(folder / "rows.FEATHER"))
    return folder / "rows.FEATHER"


def saved(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def saved_splits(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    parts = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:2]))
    parts.save_to_disk(folder / "splits")
    return folder / "splits"


def folder_of(**files: bytes) -> Callable[[Path], Path]:
    """A folder; `/` in a name is written as two underscores."""

    def write(folder: Path) -> Path:
        for name, content in files.items():
            file = folder / "parts" / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return folder / "parts"

    return write


def pattern(folder: Path) -> str:
    written("b.JSONL", lines(ROWS[3:]))(folder)
    written("a.JSONL", lines(ROWS[:3]))(folder)
    return str(folder / "*.JSONL")


def hub_layout(folder: Path) -> Path:
    """What `hf download` leaves: shards in data/, a card, and a cache."""
    parquet_file(folder, "hub/data/train-00000-of-00002.parquet", ROWS[:3])
    parquet_file(folder, "hub/data/train-00001-of-00002.parquet", ROWS[3:])
    parquet_file(folder, "hub/data/test-00000-of-00001.parquet", ROWS[:2])
    parquet_file(folder, "hub/.cache/huggingface/download/old.parquet", ROWS)
    (folder / "hub" / "dataset_infos.json").write_text("{}")
    (folder / "hub" / "README.md").write_text("---\nlicense: mit\n---\n# Rows")
    return folder / "hub"


CARD = """---
configs:
- config_name: pairs
  data_files:
  - split: train
    path: pairs/part-*.jsonl
  - split: dev
    path: [pairs/last.jsonl]
- config_name: other
  data_files: other.jsonl
dataset_info:
  config_name: pairs
  features:
  - name: kind
    dtype: {class_label: {names: {'0': bad, '1': good}}}
---
"""


def with_card(folder: Path, **files: bytes) -> Path:
    return folder_of(
        **{
            "README.md": CARD.encode(),
            "pairs__part-1.jsonl": lines(ROWS),
            "pairs__last.jsonl": lines(ROWS[:1]),
            "other.jsonl": lines(ROWS[:2]),
        }
        | files
    )(folder)


PRETTY = json.dumps(ROWS, indent=2, ensure_ascii=False).encode()
SAME = {
    "jsonl": written("rows.jsonl", lines()),
    "ndjson in capitals": written("rows.NDJSON", lines()),
    "windows": written("rows.jsonl", b"\xef\xbb\xbf" + lines().replace(b"\n", b"\r\n")),
    "blank lines": written("rows.jsonl", b"\n" + lines().replace(b"\n", b"\n \n").rstrip()),
    "array": written("rows.json", json.dumps(ROWS).encode()),
    "array over lines": written("rows.json", b"\xef\xbb\xbf" + PRETTY),
    "array, a row to a line": written("rows.json", b"[" + lines().rstrip().replace(b"\n", b",\n") + b"]\n"),
    "lines called json": written("rows.json", lines()),
    "array called jsonl": written("rows.jsonl", PRETTY),
    "objects over lines": written(
        "rows.json", b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS)
    ),
    "gzip": written("rows.jsonl.gz", gzip.compress(lines())),
    "gzip called jsonl": written("rows.jsonl", gzip.compress(lines())),
    "gzip of an array": written("rows.json.gz", gzip.compress(PRETTY)),
    "bzip2": written("rows.jsonl.bz2", bz2.compress(lines())),
    "zstd": lambda folder: zstd(folder, "rows.jsonl.zst"),
    "no ending": written("rows", lines()),
    "csv": lambda folder: table(folder, "rows.csv"),
    "tsv": lambda folder: table(folder, "rows.TSV", "\t"),
    "parquet": parquet_file,
    "parquet called jsonl": lambda folder: parquet_file(folder, "rows.jsonl"),
    "arrow": arrow_stream,
    "feather": feather_file,
    "saved": saved,
    "saved splits": saved_splits,
    "folder": folder_of(**{"b.jsonl": lines(ROWS[3:]), "a.jsonl": lines(ROWS[:3]), "README.md": b"Notes."}),
    "folder called jsonl": folder_of(**{"deep__rows.jsonl__a.jsonl": lines(), "notes.txt": b"Notes."}),
    "an object to a file": folder_of(
        **{f"{n}.json": json.dumps(ROWS[n], indent=1).encode() for n in range(5)}
    ),
    "pattern": pattern,
    "splits by file": folder_of(**{"train.jsonl": lines(), "test.jsonl": lines(ROWS[:2])}),
    "splits by name": folder_of(**{"my_train-v2.csv.jsonl": lines(), "dev.jsonl": lines(ROWS[:2])}),
    "splits by folder": folder_of(**{"training__a.jsonl": lines(), "eval__a.jsonl": lines(ROWS[:2])}),
    "from the hub": hub_layout,
}


@pytest.mark.parametrize("layout", SAME)
def test_every_kind_and_layout_gives_the_same_rows(layout, tmp_path):
    path = SAME[layout](tmp_path)
    rows = raw_rows(local(path))
    assert [row.value for row in rows] == ROWS
    assert not any(row.defect for row in rows)
    assert all(Path(row.file).is_file() for row in rows)
    assert raw_rows(local(path), "eval") is None


@pytest.mark.parametrize("layout", SAME)
def test_stretches_and_later_beginnings_give_the_same_rows(layout, tmp_path):
    data = local(SAME[layout](tmp_path))
    ((name, source),) = data.mixture().items()
    whole = raw_rows(data)
    for count in (1, 2, 4, 9):
        found = spans(source, "train", 400 // count, key=partial(data.key, name))
        assert [row for span in found for row in raw_rows(data, span=span)] == whole
        assert raw_rows(data, start=count) == whole[count:]


def test_a_large_file_is_read_in_as_many_stretches_as_asked_for(tmp_path):
    rows = [{"text": "x" * (number % 97)} for number in range(2000)]
    for path in (written("rows.jsonl", lines(rows))(tmp_path), parquet_file(tmp_path, rows=rows)):
        data = local(path)
        ((name, source),) = data.mixture().items()
        found = spans(source, "train", -(-path.stat().st_size // 4), key=partial(data.key, name))
        sizes = [len(raw_rows(data, span=span)) for span in found]
        assert len(sizes) == 4 and sum(sizes) == 2000 and max(sizes) < 700


# ---- values


ODD = {
    "late": [{"a": "x"}] * 30 + [{"a": "x", "b": "y"}],
    "null at first": [{"a": None}] * 30 + [{"a": {"b": [1, "x"]}}],
    "of several types": [
        {"a": value} for value in (1, "1", 1.5, True, None, [1], {"b": 1}, "2021-08-10T10:00:00")
    ],
    "times and numbers": [{"a": text} for text in ("10:30", "2021-08-10", "007", "1e5", "NaN", "true", "")],
    "large numbers": [{"a": 2**64 + 1, "b": -(2**70), "c": [{"d": 12345678901234567890123}]}],
    "a number's likeness in a text": [{"a": "1" * 40, "b": 0.1}],
    "half an emoji, mended": [{"a": "whole \U0001f600, half \ufffd", "\ufffd": ["\ufffd"]}],
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_each_value_is_what_stands_in_the_file(case, name, tmp_path):
    """Whatever stands in other rows, and in other files of the folder."""
    rows = ODD[case]
    text = [json.dumps(row).replace("\\ufffd", "\\ud83d") for row in rows]
    content = "\n".join(text) if name == "rows.jsonl" else "[" + ",\n".join(text) + "]"
    path = written(name, content.encode())(tmp_path)
    assert repr(values(path)) == repr(rows)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, line in enumerate(text):
        (folder / f"{number:02}.json").write_text(line)
    assert repr(values(folder)) == repr(rows)


def test_a_cell_is_text_and_an_empty_one_null(tmp_path):
    text = (
        'id,answer,note\n007,NA,\n1e5,None,"a ""b"",\nc"\n,null,2021-08-10\nx,N/A,"' + "long " * 40000 + '"\n'
    )
    rows = values(written("rows.csv", text.encode())(tmp_path))
    assert rows[:3] == [
        {"id": "007", "answer": "NA", "note": None},
        {"id": "1e5", "answer": "None", "note": 'a "b",\nc'},
        {"id": None, "answer": "null", "note": "2021-08-10"},
    ]
    assert len(rows[3]["note"]) == 200000


def test_features_are_read_by_their_names_and_nothing_is_decoded(tmp_path):
    """The card's classes for files that do not say them, and those of a file's own metadata."""
    import datasets

    picture = {"bytes": b"\x89PNG\xff\xff", "path": None}
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["good", "bad"]),
            "turns": [{"kind": datasets.ClassLabel(names=["ask", "say"])}],
            "image": datasets.Image(),
            "json": datasets.Json(),
        }
    )
    row = {"label": 1, "turns": [{"kind": 1}, {"kind": 0}], "image": picture, "json": {"a": [1]}}
    none = {"label": -1, "turns": [], "image": None, "json": None}
    rows = datasets.Dataset.from_list([row, none], features=features)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        first, second = values(path)
        assert (first["label"], first["turns"]) == ("bad", [{"kind": "say"}, {"kind": "ask"}])
        assert first["image"] == {"bytes": "<6 bytes>", "path": None} and first["json"] == {"a": [1]}
        assert (second["label"], second["turns"]) == (None, [])
    folder = with_card(tmp_path)
    (folder / "pairs" / "part-1.jsonl").unlink()
    parquet_file(folder, "pairs/part-1.parquet", [{"kind": 1}])
    (folder / "README.md").write_text(
        CARD.replace("part-*.jsonl", "*.parquet").replace("pairs\n", "default\n")
    )
    assert values(folder) == [{"kind": "good"}]


def test_times_decimals_and_binary_text_are_text(tmp_path):
    import datetime
    import decimal

    day = datetime.date(2021, 8, 10)
    content = pa.table(
        {
            "time": [[datetime.datetime(2021, 8, 10, 10, 0)]],
            "day": [{"at": day, "cost": decimal.Decimal("1.50")}],
            "bytes": [b"caf\xc3\xa9"],
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    parquet.write_table(content, tmp_path / "rows.parquet")
    (row,) = values(tmp_path / "rows.parquet")
    assert row["time"][0].startswith("2021-08-10 10:00:00")
    assert row["day"] == {"at": "2021-08-10", "cost": "1.50"}
    assert (row["bytes"], row["map"]) == ("café", {"a": 1})


def test_of_a_text_each_line_is_a_row(tmp_path):
    path = written("rows.txt", "A text.\n\n\u2028Another one, 007\r\n".encode())(tmp_path)
    assert values(path) == [{"text": "A text."}, {"text": "\u2028Another one, 007"}]


# ---- lines that cannot be read

GOOD = {"prompt": "Q", "completion": "A"}
BAD_LINES = {
    b'{"prompt": "Q", "comp': "is cut: it ends before its value does",
    b'{"prompt": "Q",': "is cut",
    b'{"prompt": Q}': "is no JSON",
    b"{'prompt': 'Q'}": "is no JSON (names and texts are in single quotes, as Python shows them",
    b'{"prompt": "caf\xe9"}': "is not UTF-8",
    b'{"a": 1}{"a": 2}': "holds more than one value",
    b'{"a": ' + b"[" * 100_000: "is nested too deeply",
    b'{"a": ' + b"1" * 5000 + b"}": "has a number too large",
    b"null": 'is null; a row is an object of columns, as {"messages": [...]}',
    b'[{"role": "user"}]': "is a list;",
    b"12": "is a number;",
    b'"text"': "is text;",
    b"false": "is true or false;",
}


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_line_that_cannot_be_read_is_a_row_with_a_defect(at, tmp_path):
    """The lines around it are read, and it has its number, wherever it stands."""
    for line, problem in BAD_LINES.items():
        content = [json.dumps(GOOD).encode()] * 4
        content.insert(at, line)
        path = written("rows.jsonl", b"\n".join(content))(tmp_path)
        rows = raw_rows(local(path))
        assert [row.line for row in rows if row.defect] == [at + 1], line
        assert str(rows[at].defect).startswith(problem)
        assert rows[at].place == f"{path}, line {at + 1}"
        assert [row.value for row in rows if not row.defect] == [GOOD] * 4


@pytest.mark.parametrize("line", BAD_LINES)
def test_where_no_row_can_be_read_each_is_named_and_not_their_columns(line, composed, tmp_path):
    path = written("rows.jsonl", line + b"\n" + line)(tmp_path)
    if line.startswith(b"[{"):
        path = written("rows.json", b"[[],[]]")(tmp_path)
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used \(.*(line|row) 1: .*(line|row) 2: "):
        load_rows(composed(["data=local", f"data.path={path}", "model=tiny"]))


def test_a_row_of_an_array_that_is_none_has_its_number(tmp_path):
    path = written("rows.json", json.dumps([None, GOOD, [GOOD], "x", GOOD]).encode())(tmp_path)
    bad = [row for row in raw_rows(local(path)) if row.defect]
    assert [row.place for row in bad] == [f"{path}, row {number}" for number in (1, 3, 4)]


def test_a_row_of_a_table_that_does_not_fit_is_a_row_with_a_defect(tmp_path):
    text = b'prompt,completion\nQ,A\nQ,A,more\nQ\n"Q" she said,A\nQ,caf\xe9\nQ,"two\nlines"\nQ,A,,\n\nQ,A\n'
    rows = raw_rows(local(written("rows.csv", text)(tmp_path)))
    assert [(row.line, str(row.defect)[:24]) for row in rows if row.defect] == [
        (3, "has 3 cells where the he"),
        (4, "has 1 cells where the he"),
        (5, "is no CSV (',' expected a"[:24]),
        (6, "is not UTF-8; save the file"[:24]),
    ]
    assert [(row.line, row.value["completion"]) for row in rows if not row.defect] == [
        (2, "A"), (7, "two\nlines"), (9, "A"), (11, "A"),
    ]  # fmt: skip


# ---- files that cannot be read


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-9])
    return path


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "rows.jsonl")
    return folder / "rows.jsonl"


def cut_parquet(folder: Path) -> Path:
    path = parquet_file(folder)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def cut_arrow(folder: Path) -> Path:
    path = arrow_stream(folder)
    path.write_bytes(path.read_bytes()[:-300])
    return path


def no_longer_saved(folder: Path) -> Path:
    next(saved(folder).glob("*.arrow")).unlink()
    return folder / "saved"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CANNOT = {
    "empty": (written("rows.jsonl", b""), "holds no rows"),
    "blank": (written("rows.jsonl", b"\n \n"), "holds no rows"),
    "an empty array": (written("rows.json", b"[]"), "holds no rows"),
    "a header alone": (written("rows.csv", b"prompt,completion\n"), "holds no rows"),
    "empty parquet": (written("rows.parquet", b""), "is no Parquet file, whatever"),
    "text called parquet": (written("rows.parquet", b"no parquet"), "it begins with 'no parquet'"),
    "a pipe": (pipe, "is no file but a pipe or a device"),
    "cut parquet": (cut_parquet, "cannot be read ("),
    "cut arrow": (cut_arrow, "cannot be read ("),
    "cut array": (written("rows.json", b'[{"a": 1},\n{"a": "x'), "it is cut in row 2 (line 2);"),
    "array without end": (written("rows.json", b'[{"a": 1}\n'), "it is cut after row 1"),
    "broken array": (written("rows.json", b'[{"a": 1},\n{"a": x},\n{"a": 2}]'), "row 2 is no JSON at line 2"),
    "no comma": (written("rows.json", b'[{"a": 1}\n{"a": 2}]'), "no comma follows row 1 (line 2)"),
    "array in latin-1": (written("rows.json", b'[\n{"a": "caf\xe9"}]'), "is not UTF-8 (line 2);"),
    "utf-16": (written("rows.jsonl", '{"a": 1}'.encode("utf-16")), "is UTF-16; save it as UTF-8"),
    "binary": (written("rows.jsonl", b"\x01\x00\x02" * 9), "is neither text nor"),
    "cut gzip": (written("rows.jsonl.gz", gzip.compress(lines() * 99)[:-20]), "cannot be unpacked"),
    "cut long gzip": (written("rows.jsonl.gz", gzip.compress(lines() * 999)[:-20]), "read to its end"),
    "cut zstd": (lambda folder: cut(zstd(folder, "rows.jsonl.zst", 999)), "it is damaged: fetch"),
    "a pointer": (written("rows.parquet", LFS), "is a pointer of Git LFS and holds no"),
    "a page": (written("rows.json", b"\n<!DOCTYPE html><html>"), "is an HTML page"),
    "a zip": (written("rows.csv", b"PK\x03\x04..."), "is a zip archive or a workbook"),
    "csv called jsonl": (written("rows.jsonl", b"prompt,completion\nQ,A\n"), "holds no JSON: it begins with"),
    "jsonl called csv": (written("rows.csv", lines()), "holds JSON, whatever its name says;"),
    "semicolons": (written("rows.csv", b"prompt;completion\nQ;A\n"), "its cells are separated by semicolons"),
    "tabs": (written("rows.csv", b"prompt\tcompletion\nQ\tA\n"), "its cells are separated by tabs"),
    "a column twice": (written("rows.csv", b"prompt,a,prompt\nQ,A,B\n"), "has the column 'prompt' twice"),
    "open quotes": (written("rows.csv", b'a,b\n1,2\n1,"2\n1,2\n'), "that open at line 3 are never closed"),
    "another ending": (written("rows.docx", b"x"), "holds no rows that its ending or its content tells"),
    "an empty folder": (folder_of(**{"notes.md": b"x"}), "holds no file of rows (.md); give a .json"),
    "several kinds": (folder_of(**{"a.json": PRETTY, "a.jsonl": lines()}), "several kinds (.json, .jsonl)"),
    "above and below": (
        folder_of(**{"a.jsonl": lines(), "old__a.jsonl": lines()}),
        "and others in folders of it (old/a.jsonl)",
    ),
    "some of a split": (
        folder_of(**{"test.jsonl": lines(), "rows.jsonl": lines()}),
        "files of a split (test.jsonl: test) and others of none (rows.jsonl)",
    ),
    "no such split": (
        folder_of(**{"test.jsonl": lines(), "dev.jsonl": lines()}),
        "has no split 'train'; set data.split to one of validation, test",
    ),
    "saved in part": (no_longer_saved, "is gone, which its state.json names"),
    "configs": (with_card, "has several configs; set data.config to one of pairs, other"),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_read_is_one_sentence(case, tmp_path):
    write, phrase = CANNOT[case]
    path = write(tmp_path)
    sentence = refusal(path)
    assert sentence.startswith(f"data.path={path}: ") and phrase in sentence
    # the same file beside others is named, and a fault of the held-out rows is not laid on the others
    good = written("good.jsonl", lines())(tmp_path)
    assert refusal(good, "eval", eval_path=str(path)).startswith(f"data.eval_path={path}: ")


def test_the_file_of_a_folder_is_named(tmp_path):
    path = folder_of(**{"a.jsonl": lines(), "b.jsonl": LFS})(tmp_path)
    assert f"{path / 'b.jsonl'} is a pointer" in refusal(path)


def test_a_file_that_is_gone_or_may_not_be_read_is_one_sentence(tmp_path):
    path = written("rows.jsonl", lines())(tmp_path)
    data = local(path)
    if os.geteuid():  # root may read every file
        path.chmod(0)
        assert "cannot be read (Permission denied)" in refusal(path)
    path.unlink()
    with pytest.raises(DataError, match="no such file or folder"):
        raw_rows(data)
    (tmp_path / "a.json").mkdir()
    assert "matches folders alone" in refusal(f"{tmp_path}/*.json")


@pytest.mark.parametrize("pattern", ["", "/*.jsonl"])
def test_a_link_to_nothing_among_files_is_not_passed_over(pattern, tmp_path):
    """Its rows would be missing without a word; a link to another file, or a folder, is one."""
    path = folder_of(**{"a.jsonl": lines()})(tmp_path)
    (path / "b.jsonl").symlink_to(tmp_path / "gone")
    sentence = refusal(f"{path}{pattern}")
    assert f"{path / 'b.jsonl'} is a link to {tmp_path / 'gone'}, which is not there" in sentence
    (tmp_path / "gone").write_bytes(lines(ROWS[:1]))
    assert values(Path(f"{path}{pattern}")) == [*ROWS, ROWS[0]]


# ---- splits and held-out rows


@pytest.mark.parametrize("layout", ["saved splits", "splits by file", "splits by folder", "from the hub"])
def test_a_folder_that_names_its_splits_has_splits(layout, tmp_path):
    path = SAME[layout](tmp_path)
    assert values(path, "eval", eval_split="test") == ROWS[:2]
    assert values(path, split="test") == ROWS[:2]
    assert "has no split 'dev'; set data.eval_split to one of t" in refusal(path, "eval", eval_split="dev")
    assert "has the splits t" in refusal(path, "eval", eval_path=str(path))


def test_the_splits_that_are_not_read_are_told(tmp_path):
    path = SAME["splits by folder"](tmp_path)
    assert unread_splits(local(path)) == [
        f"data.path={path}: not read: test; hold one out with data.eval_split"
    ]
    assert unread_splits(local(path, eval_split="test")) == []
    assert unread_splits(local(path / "eval")) == []


def test_files_of_a_folder_that_hold_no_rows_are_told(tmp_path):
    for name in ("rows.jsonl", "notes.txt", "loader.py", "sub/x.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines())
    for name in ("README.md", "LICENSE", ".gitattributes", "dataset_infos.json", ".cache/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (line,) = unread_splits(local(tmp_path))
    assert line == f"data.path={tmp_path}: not read: loader.py, notes.txt, sub/x.bin"


def test_a_pattern_that_matches_files_of_several_splits_has_splits(tmp_path):
    path = SAME["from the hub"](tmp_path)
    assert values(f"{path}/data/*.parquet") == ROWS
    assert values(f"{path}/data/test-*.parquet") == ROWS[:2]
    assert values(f"{path}/data/*.parquet", "eval", eval_split="test") == ROWS[:2]


def test_the_card_of_a_folder_says_its_configs_and_splits(tmp_path):
    path = with_card(tmp_path)
    (path / "README.md").write_text(CARD.replace("config_name: pairs", "config_name: default"))
    assert values(path) == ROWS
    assert values(path, "eval", eval_split="dev") == ROWS[:1]
    assert values(path, config="other") == ROWS[:2]
    assert "has no config 'dev'; set data.config to one of default, other" in refusal(path, config="dev")
    assert refusal(path / "other.jsonl", config="x").startswith(
        f"data.config=x: data.path={path}/other.jsonl"
    )
    (path / "pairs" / "last.jsonl").unlink()
    assert "names pairs/last.jsonl, of which no file is here" in refusal(path)


def test_rows_without_splits_have_no_other_split(tmp_path):
    path = written("rows.jsonl", lines())(tmp_path)
    assert refusal(path, "eval", eval_split="test") == (
        f"data.eval_split=test: data.path={path} has no splits; "
        "name a file of held-out rows with data.eval_path."
    )
    assert refusal(path, split="test").startswith(f"data.split=test: data.path={path} has no splits")
    assert values(path, "eval", eval_path=str(path)) == ROWS


# ---- which files, and how much of them


def test_the_files_that_are_read_are_those_whose_digests_are_kept(tmp_path):
    for layout in ("from the hub", "saved splits", "splits by file"):
        (tmp_path / layout).mkdir()
        data = local(SAME[layout](tmp_path / layout), eval_split="test")
        read = {row.file for part in ("train", "eval") for row in raw_rows(data, part)}
        (files,) = source_files(data).values()
        assert {str(file) for file in files.values()} == read
    assert source_files(local(tmp_path, streaming=True)) == {}
    embedded = source_files(Data(source=DataSource.embedded))
    assert [len(files) for files in embedded.values()] == [2]


def test_a_file_that_changes_under_the_same_size_and_time_is_read_anew(tmp_path):
    path = written("rows.jsonl", lines())(tmp_path)
    assert values(path) == ROWS
    times = path.stat()
    path.write_bytes(lines().replace(b"Q0", b"Q9"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert values(path)[0]["prompt"] == "Q9"


def test_a_file_is_never_held_whole(tmp_path):
    """9 MB of rows are read in the memory of a few."""
    rows = [{"text": f"{number} " * 300} for number in range(6000)]
    paths = [
        written("rows.jsonl", lines(rows))(tmp_path),
        written("rows.json", json.dumps(rows).encode())(tmp_path),
        written("rows.csv", b"text\n" + "".join(row["text"] + "\n" for row in rows).encode())(tmp_path),
        written("rows.jsonl.gz", gzip.compress(lines(rows), 1))(tmp_path),
    ]
    for path in paths:
        data = local(path)
        ((name, source),) = data.mixture().items()
        tracemalloc.start()
        count = sum(1 for _ in open_rows(source, "train", key=partial(data.key, name)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 6000
        assert peak < 7e6, (path, peak)


READ_LOCAL = """
import sys; sys.path.insert(0, sys.argv[1])
from alignment_lab.config import Data, DataSource
from alignment_lab.data.readers import open_rows
for path in sys.argv[2:]:
    data = Data(source=DataSource.local, path=path)
    print(len(list(open_rows(data.mixture()["data"], "train", key=str))))
print("imported", *(name for name in ("datasets", "pandas", "torch", "transformers") if name in sys.modules))
"""


def test_local_files_need_neither_datasets_nor_pandas(run_command, tmp_path):
    paths = [SAME[kind](tmp_path) for kind in ("jsonl", "array", "csv", "parquet")]
    ended = run_command(READ_LOCAL, str(ROOT), *map(str, paths), script=["-c"])
    assert ended.output.split() == ["5"] * 4 + ["imported"]
