"""Streaming reads the rows that a run can use, the same ones each time, and splits these alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_lab.actions import run_action
from alignment_lab.config import Experiment
from alignment_lab.content import finished_elsewhere
from alignment_lab.data import DataError, load_rows, prompt_messages
from alignment_lab.data.loading import RowStream
from alignment_lab.runtime.files import file_digest, write_json
from alignment_lab.runtime.run_directory import RunDirectory

ROWS_IN_FILE = 5000
SMALL = [
    "training.max_steps=10",
    "training.global_batch=4",
    "eval.rows=6",
    "eval.generations=3",
]  # 40 rows to train on, 6 held out
ROWS_READ = 61  # 6 held-out ones are a tenth of 60; and one more, for rounding


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "chosen": f"A number, {number}.", "rejected": "No."}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair(number)) + "\n" for number in range(ROWS_IN_FILE)))
    return file


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """The number of rows that each read of a stream returned."""
    counts: list[int] = []
    take = RowStream.take

    def counted(self: RowStream, count: int) -> list[dict[str, Any]]:
        rows = take(self, count)
        counts.append(len(rows))
        return rows

    monkeypatch.setattr(RowStream, "take", counted)
    return counts


@pytest.fixture
def streamed(composed) -> Callable[..., Experiment]:
    def make(path: Path, *overrides: str) -> Experiment:
        return composed(["data=local", f"data.path={path}", "data.streaming=true", *SMALL, *overrides])

    return make


def test_only_rows_that_the_run_can_use_are_read(streamed, pairs, taken):
    splits = load_rows(streamed(pairs))
    assert taken == [ROWS_READ]
    assert len(splits.train) + len(splits.heldout) == ROWS_READ
    assert len(splits.train) >= 40 and len(splits.heldout) >= 6
    assert {int(prompt_messages(row)[0]["content"][8:-1]) for row in [*splits.train, *splits.heldout]} == set(
        range(ROWS_READ)
    )


def test_rows_that_were_not_read_change_nothing(streamed, pairs, tmp_path):
    other = tmp_path / "other.jsonl"
    lines = pairs.read_text().splitlines(keepends=True)
    other.write_text("".join(lines[:ROWS_READ] + [json.dumps(pair(-number)) + "\n" for number in range(200)]))
    assert load_rows(streamed(pairs)) == load_rows(streamed(other)) == load_rows(streamed(pairs))


def test_the_end_of_a_large_file_is_never_read(streamed, composed, tmp_path):
    """12 MB of rows, then a line that is not JSON."""
    file = tmp_path / "large.jsonl"
    file.write_text(
        "".join(json.dumps(pair(n) | {"chosen": f"{n} " * 600}) + "\n" for n in range(6000)) + "{nothing\n"
    )
    assert file.stat().st_size > 12e6
    assert len(load_rows(streamed(file)).train) >= 40
    with pytest.raises(DataError, match="line 6001: is no JSON"):
        load_rows(composed(["data=local", f"data.path={file}", "data.max_bad_fraction=0"]))


@pytest.mark.parametrize("method", ["dpo", "kto", "sft"])
def test_a_file_that_is_read_to_its_end_gives_the_same_rows_as_without_streaming(
    method, streamed, composed, write_rows
):
    path = write_rows([pair(number) for number in range(40)])
    spec = streamed(path, f"method={method}", "training.max_steps=1000")
    assert load_rows(spec) == load_rows(composed(["data=local", f"data.path={path}", f"method={method}"]))


def saved(folder: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def as_json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows, indent=2))
    return folder / "rows.json"


@pytest.mark.parametrize("write", [saved, as_parquet, as_csv, as_json])
def test_every_kind_of_file_can_be_streamed(write, streamed, pairs, tmp_path):
    assert load_rows(streamed(write(tmp_path, [pair(number) for number in range(500)]))) == load_rows(
        streamed(pairs)
    )


def test_separate_heldout_rows_are_streamed_too(streamed, pairs, taken, write_rows):
    held = write_rows([pair(number) for number in range(10, 1000)])
    splits = load_rows(streamed(pairs, f"data.eval_path={held}"))
    assert len(splits.heldout) == 8  # six, and a fourth as many again
    assert taken == [8, 40, 11]  # eight of the first forty are held out: more are read
    assert splits.dropped == {"a prompt or a turn of it is held out": 8}
    assert len(splits.train) == 43


def test_where_rows_are_dropped_more_are_read(streamed, tmp_path, taken):
    file = tmp_path / "rows.jsonl"
    same = {"prompt": "Same?", "chosen": "a", "rejected": "a"}
    file.write_text("".join(json.dumps(row) + "\n" for n in range(500) for row in (pair(n), same)))
    splits = load_rows(streamed(file))
    assert len(splits.train) >= 40 and len(splits.heldout) >= 6
    assert ROWS_READ < sum(taken) < 200


def test_enough_texts_are_read_to_fill_the_blocks(streamed, tmp_path, taken):
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{number} words and more. " * 20}) + "\n" for number in range(4000))
    )
    splits = load_rows(streamed(file, "method=cpt", "data.max_length=64"))
    assert sum(len(row["text"]) for row in splits.train) >= 40 * 64 * 8
    assert sum(taken) < 200


def test_an_empty_file_is_refused(streamed, tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(DataError, match="holds no rows"):
        load_rows(streamed(tmp_path / "rows.csv"))


def test_an_interrupted_run_reads_the_same_rows_again(streamed, pairs, tmp_path):
    """And one that is finished tells other rows among those that it read, and no others."""
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(pairs.read_bytes())
    spec = streamed(
        file, "model=tiny", "parallel.device=cpu", "training.max_steps=4", "training.save_steps=2",
        "training.learning_rate=1e-3",
        "eval.max_new_tokens=4",
    )  # fmt: skip
    whole, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "run")
    run_action(spec, whole)
    assert whole.report()["rows"]["train"] == 16
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    write_json(run.state_file, run.state() | {"state": "failed"})
    run_action(spec, run)
    assert [row["loss"] for row in run.metrics()] == [row["loss"] for row in whole.metrics()]
    assert file_digest(run.model / "model.safetensors") == file_digest(whole.model / "model.safetensors")
    first, *lines = file.read_text().splitlines()
    file.write_text("\n".join([first, *lines, json.dumps(pair(10**6))]))
    assert finished_elsewhere(run, spec) is None
    file.write_text("\n".join([json.dumps(pair(10**6)), *lines]))
    assert f"data.path={file} has other rows" in str(finished_elsewhere(run, spec))
