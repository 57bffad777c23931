"""A checkpoint has its name only when it is whole, and is used only while it is."""

import pytest

from alignment_lab.checkpoints import manifest


@pytest.fixture
def published(tmp_path):
    def make(step: int):
        partial = tmp_path / ".partial" / f"checkpoint-{step}"
        partial.mkdir(parents=True)
        (partial / "weights").write_bytes(bytes([step]) * 100)
        (partial / "state.json").write_text(f'{{"step": {step}}}')
        manifest.commit(partial, tmp_path / f"checkpoint-{step}", run_id="abc", step=step)
        return tmp_path / f"checkpoint-{step}"

    return make


def test_the_newest_is_by_number_and_not_by_name(tmp_path, published):
    published(9)
    assert manifest.newest_valid(tmp_path, "abc") == (tmp_path / "checkpoint-9", [])
    published(10)
    assert manifest.newest_valid(tmp_path, "abc") == (tmp_path / "checkpoint-10", [])


DAMAGE = {
    "truncated": lambda folder: (folder / "weights").write_bytes(b"\x02" * 99),
    "a flipped bit": lambda folder: (folder / "weights").write_bytes(b"\x02" * 99 + b"\x03"),
    "a lost file": lambda folder: (folder / "state.json").unlink(),
    "a lost manifest": lambda folder: (folder / manifest.MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over(tmp_path, published, damage):
    published(1)
    DAMAGE[damage](published(2))
    found, passed = manifest.newest_valid(tmp_path, "abc")
    assert found == tmp_path / "checkpoint-1"
    assert len(passed) == 1 and "checkpoint-2 is passed over: " in passed[0]


def test_another_experiments_checkpoint_is_not_ours(tmp_path, published):
    published(1)
    found, (passed,) = manifest.newest_valid(tmp_path, "another")
    assert found is None and passed.endswith("checkpoint-1 is passed over: it is of the run abc")


def test_retention_deletes_the_oldest_committed_and_nothing_else(tmp_path, published):
    for step in (1, 2, 3):
        published(step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").mkdir()  # no manifest: not ours to delete
    manifest.rotate(tmp_path, 2, "abc")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-7",
        "checkpoint-best",
    ]
