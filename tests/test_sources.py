"""Every source gives the same rows, and the same prompts are held out whatever the seed, method and order."""

from __future__ import annotations

import json
import random
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from alignment_lab.config import Data, DataSource
from alignment_lab.data import DataError, load_rows, max_train_groups, prompt_messages
from alignment_lab.data.readers import open_rows

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
ROWS = [{"prompt": f"Q{number}", "chosen": 'A, "é"', "rejected": "B\nB"} for number in range(5)]


def local(path: Path | str, **settings) -> Data:
    return Data(source=DataSource.local, path=str(path), **settings)


def read_rows(data: Data) -> tuple[list, list | None]:
    """(training rows, held-out rows or None)."""
    ((name, source),) = data.mixture().items()
    train, heldout = (open_rows(source, part, key=partial(data.key, name)) for part in ("train", "eval"))
    return [row.value for row in train or ()], None if heldout is None else [row.value for row in heldout]


def as_jsonl(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "rows.jsonl"


def as_json(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8")
    return folder / "rows.json"


def as_csv(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(ROWS).to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def as_parquet(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def as_saved(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:2])).save_to_disk(
        folder / "splits"
    )
    return folder / "splits"


def as_folder(folder: Path) -> Path:
    """Two files of one kind, read in the order of their names, beside a file that is not data."""
    parts = folder / "parts"
    parts.mkdir()
    for name, rows in (("b.jsonl", ROWS[3:]), ("a.jsonl", ROWS[:3])):
        (parts / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (parts / "README.md").write_text("about these rows")
    return parts


# ---- held-out rows


def test_a_split_or_a_file_of_its_own_is_held_out(tmp_path):
    saved, rows = as_saved_splits(tmp_path), as_jsonl(tmp_path)
    assert read_rows(local(saved, eval_split="test")) == (ROWS, ROWS[:2])
    assert read_rows(local(rows, eval_path=str(as_folder(tmp_path)))) == (ROWS, ROWS)


def test_an_eval_split_of_one_file_is_refused(tmp_path):
    """A file has no splits: its rows would be held out whole."""
    with pytest.raises(DataError, match="eval_split"):
        read_rows(local(as_jsonl(tmp_path), eval_split="test"))


PAIRS = [
    {"prompt": f"Q{number // 2}", "chosen": f"A{number}", "rejected": "B"} for number in range(80)
]  # 40 prompts, each twice


@pytest.fixture
def loaded(composed, write_rows):
    def make(rows: list[dict], *overrides: str):
        return load_rows(composed(["data=local", f"data.path={write_rows(rows)}", *overrides]))

    return make


def texts(rows: list[dict]) -> list[str]:
    return [prompt_messages(row)[-1]["content"] for row in rows]


def test_no_prompt_is_trained_and_held_out(loaded):
    """A tenth of 40 prompts is 4; both rows of each go with it."""
    splits = loaded(PAIRS)
    assert len(set(texts(splits.heldout))) == 4
    assert (len(splits.train), len(splits.heldout)) == (72, 8)
    assert not set(texts(splits.train)) & set(texts(splits.heldout))


@pytest.mark.parametrize("change", ["seed", "order", "method"])
def test_the_same_prompts_are_held_out_whatever_changes(change, loaded):
    first = set(texts(loaded(PAIRS).heldout))
    rows = random.Random(1).sample(PAIRS, len(PAIRS)) if change == "order" else PAIRS
    again = loaded(rows, *{"seed": ["training.seed=7"], "method": ["method=sft"], "order": []}[change])
    assert set(texts(again.heldout)) == first


def test_a_larger_fraction_holds_out_the_same_prompts_and_more(loaded):
    small, large = (set(texts(loaded(PAIRS, f"data.eval_fraction={share}").heldout)) for share in (0.1, 0.5))
    assert small < large and len(large) == 20


@pytest.mark.parametrize(("prompts", "expected"), [(1, 0), (2, 1), (3, 1), (20, 2)])
def test_of_few_prompts_one_is_held_out_if_one_is_left_to_train_on(prompts, expected, loaded):
    splits = loaded([{"prompt": f"Q{number}", "chosen": "A", "rejected": "B"} for number in range(prompts)])
    assert (len(splits.train), len(splits.heldout)) == (prompts - expected, expected)


def test_one_prompt_is_left_to_train_on_whatever_the_fraction(loaded):
    """Nine tenths of two prompts round to two."""
    rows = [{"prompt": f"Q{number}", "chosen": "A", "rejected": "B"} for number in range(2)]
    splits = loaded(rows, "data.eval_fraction=0.9")
    assert (len(splits.train), len(splits.heldout)) == (1, 1)


def test_prompts_of_an_eval_file_leave_the_training_rows(loaded, write_rows):
    """Q0 is in both files: its two rows are dropped from training, counted, and measured."""
    test = write_rows([PAIRS[0], {"prompt": "new", "chosen": "A", "rejected": "B"}], "test.jsonl")
    splits = loaded(PAIRS, f"data.eval_path={test}")
    assert sorted(texts(splits.heldout)) == ["Q0", "new"]
    assert len(splits.train) == 78 and "Q0" not in texts(splits.train)
    assert dict(splits.dropped) == {"a prompt or a turn of it is held out": 2}


def test_the_order_of_training_rows_depends_on_the_seed_alone(loaded):
    first, again, other = loaded(PAIRS), loaded(PAIRS), loaded(PAIRS, "training.seed=7")
    assert first.train == again.train
    assert first.train != other.train
    assert sorted(map(str, first.train)) == sorted(map(str, other.train))
    assert first.heldout == other.heldout  # in the same order too: the same rows are evaluated


def test_two_methods_see_the_prompts_in_the_same_order(loaded):
    assert texts(loaded(PAIRS).train) == texts(loaded(PAIRS, "method=sft").train)


# ---- labeled answers and texts


def completions(rows: list[dict]) -> list[str]:
    return [row["completion"][0]["content"] for row in rows]


def test_the_halves_of_a_pair_stay_together_in_the_order_of_the_pairs(loaded):
    """Prompts come twice in PAIRS, sometimes in neighboring rows: the halves are still those of a row."""
    pairs, split = loaded(PAIRS), loaded(PAIRS, "method=kto")
    for name in ("train", "heldout"):
        rows = getattr(split, name)
        assert completions(rows[::2]) == [row["chosen"][0]["content"] for row in getattr(pairs, name)]
        assert completions(rows[1::2]) == [row["rejected"][0]["content"] for row in getattr(pairs, name)]
        assert [row["label"] for row in rows] == [True, False] * (len(rows) // 2)
        assert texts(rows[::2]) == texts(rows[1::2])


def test_labeled_answers_are_shuffled_one_by_one(loaded):
    """Good ones come first in the file, four to a prompt; shuffled, the first hundred hold both kinds.

    Of 100 fair draws 30 to 70 are good, except once in 10,000 seeds, and the seed here is fixed; of 359
    neighbors 1 in 120 (3 others of 359) answer the same prompt, three on average.
    """
    rows = [
        {"prompt": f"Q{number // 4}", "completion": f"A{number}", "label": number < 200}
        for number in range(400)
    ]
    train = loaded(rows, "method=kto").train
    assert len(train) == 360
    assert 30 <= sum(row["label"] for row in train[:100]) <= 70
    assert sum(prompt == next_prompt for prompt, next_prompt in pairwise(texts(train))) < 12
    assert train == loaded(rows, "method=kto").train != loaded(rows, "method=kto", "training.seed=7").train


def test_no_text_is_trained_and_held_out(loaded):
    rows = [{"text": f"text {number // 2}"} for number in range(80)]
    splits = loaded(rows, "method=cpt")
    assert (len(splits.train), len(splits.heldout)) == (72, 8)
    assert not {row["text"] for row in splits.train} & {row["text"] for row in splits.heldout}
    assert {str(row) for row in loaded(rows[::-1], "method=cpt", "training.seed=7").heldout} == {
        str(row) for row in splits.heldout
    }
    assert prompt_messages(splits.train[0]) == []


def test_the_number_of_texts_that_a_run_can_use_is_unknown(composed):
    assert max_train_groups(composed(["method=cpt", "training.max_steps=1"])) is None


def test_the_digest_is_of_the_rows_and_of_nothing_else(loaded):
    first = loaded(PAIRS).digest
    assert [
        loaded(PAIRS, *more).digest
        for more in (["training.seed=7"], ["method=sft"], ["training.max_steps=1"])
    ] == [first] * 3
    assert loaded([*PAIRS[:-1], PAIRS[-1] | {"rejected": "C"}]).digest != first
    assert loaded(PAIRS[:-1]).digest != first
    assert len(first) == 64


@pytest.mark.parametrize(("steps", "batch", "groups"), [(-1, 8, None), (1, 8, 8), (12, 8, 96), (5, 3, 15)])
def test_a_run_of_some_steps_needs_that_many_rows(steps, batch, groups, composed):
    spec = composed([f"training.max_steps={steps}", f"training.global_batch={batch}"])
    assert max_train_groups(spec) == groups


# ---- the embedded rows, the Hub, real files


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_the_embedded_rows_load_whole(method, composed):
    splits = load_rows(composed([f"method={method}"]))
    assert (len(splits.train), len(splits.heldout)) == (1024, 256)
    assert not splits.dropped
    assert all(row["answer"] for row in splits.train + splits.heldout)


UNREACHABLE = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HF_ENDPOINT": "https://huggingface.co",
}
READ_FROM_HUB = """
import sys; sys.path.insert(0, sys.argv[1])
import datasets, time
from alignment_lab.config import Data
from alignment_lab.data.readers import open_rows
from alignment_lab.runtime.errors import UserError
start = time.monotonic()
try: next(open_rows(Data(path="org/name").mixture()["data"], "train", key="data.{}".format))
except UserError as error: print(error)
print(time.monotonic() - start)
"""


@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, UNREACHABLE], ids=["offline", "closed"])
def test_a_hub_that_cannot_be_reached_is_one_quick_sentence(network, run_command, tmp_path):
    ended = run_command(READ_FROM_HUB, str(ROOT), script=["-c"], HF_HOME=str(tmp_path), **network)
    sentence, seconds = ended.output.splitlines()
    assert sentence.startswith("data.path=org/name: ")
    assert "reached" in sentence or "HF_HUB_OFFLINE" in sentence
    assert "data=local data.path=FILE" in sentence
    assert float(seconds) < 5
    assert "torch" not in ended.imported


REAL = {
    "hh_harmless_1000.jsonl": (1000, 997, {"`chosen` is empty", "`rejected` is empty"}),
    "dpo_en_demo.json": (300, 300, set()),
    "alpaca_en_demo.json": (999, 999, set()),
    "kto_en_demo.json": (300, 300, set()),
    "c4_demo.jsonl": (300, 300, set()),
}
METHODS_OF = {"alpaca_en_demo.json": "sft", "kto_en_demo.json": "kto", "c4_demo.jsonl": "cpt"}


@pytest.mark.parametrize("name", REAL)
def test_real_files_load(name, composed):
    """hh_harmless_1000 has three rows with an empty answer. Files that METHODS_OF lacks hold pairs."""
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not there")
    rows, kept, reasons = REAL[name]
    splits = load_rows(
        composed(["data=local", f"data.path={SHARED / name}", f"method={METHODS_OF.get(name, 'dpo')}"])
    )
    assert len(splits.train) + len(splits.heldout) + splits.dropped.total() == rows
    assert (len(splits.train) + len(splits.heldout), set(splits.dropped) <= reasons) == (kept, True)
    assert not {str(prompt_messages(row) or row) for row in splits.train} & {
        str(prompt_messages(row) or row) for row in splits.heldout
    }
