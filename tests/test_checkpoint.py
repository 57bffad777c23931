"""A checkpoint gets its name only when it is complete, and is used only while it is valid."""

import pytest

from alignment_lab.checkpoints import manifest


@pytest.fixture
def publish(tmp_path):
    def make(step: int):
        partial = tmp_path / ".partial" / f"checkpoint-{step}"
        partial.mkdir(parents=True)
        (partial / "weights").write_bytes(bytes([step]) * 100)
        (partial / "state.json").write_text(f'{{"step": {step}}}')
        manifest.commit(partial, tmp_path / f"checkpoint-{step}", run_id="abc", step=step)
        return tmp_path / f"checkpoint-{step}"

    return make


def test_the_newest_is_chosen_by_number_and_not_by_name(tmp_path, publish):
    publish(9)
    assert manifest.newest_valid(tmp_path, "abc") == (tmp_path / "checkpoint-9", [])
    publish(10)
    assert manifest.newest_valid(tmp_path, "abc") == (tmp_path / "checkpoint-10", [])


DAMAGE = {
    "truncated": lambda folder: (folder / "weights").write_bytes(b"\x02" * 99),
    "a flipped bit": lambda folder: (folder / "weights").write_bytes(b"\x02" * 99 + b"\x03"),
    "a lost file": lambda folder: (folder / "state.json").unlink(),
    "a lost manifest": lambda folder: (folder / manifest.MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped(tmp_path, publish, damage):
    publish(1)
    DAMAGE[damage](publish(2))
    checkpoint, skipped = manifest.newest_valid(tmp_path, "abc")
    assert checkpoint == tmp_path / "checkpoint-1"
    assert len(skipped) == 1 and "checkpoint-2 is skipped: " in skipped[0]


def test_the_checkpoint_of_another_experiment_is_skipped(tmp_path, publish):
    publish(1)
    checkpoint, (skipped,) = manifest.newest_valid(tmp_path, "another")
    assert checkpoint is None and skipped.endswith("checkpoint-1 is skipped: it belongs to the run abc")


def test_rotation_deletes_the_oldest_committed_and_nothing_else(tmp_path, publish):
    for step in (1, 2, 3):
        publish(step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").mkdir()  # has no manifest, so it is not deleted
    manifest.rotate(tmp_path, 2, "abc")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-7",
        "checkpoint-best",
    ]
