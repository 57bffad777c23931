"""Rows that are laid out in other processes give the same run, bit for bit; a batch of many tensors comes
through.
"""

from __future__ import annotations

import pickle
import shutil
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from alignment_lab.actions import run_action
from alignment_lab.runtime.files import file_digest, write_json
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.training.batch import GlobalBatch

TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=4",
    "training.global_batch=8",
    "training.micro_tokens=100",  # several passes a step
    "training.learning_rate=1e-3",
    "training.save_steps=2",
    "eval=none",
]


def told(run: RunDirectory) -> tuple[list[float], str]:
    return [row["loss"] for row in run.metrics()], file_digest(run.model / "model.safetensors")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_workers_change_nothing(method, composed, tmp_path):
    """Nor where a run that was cut off goes on with other ones."""
    alone, two = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "two")
    run_action(composed([*TINY, f"method={method}"]), alone)
    run_action(composed([*TINY, f"method={method}", "training.dataloader_num_workers=2"]), two)
    assert told(two) == told(alone)
    shutil.rmtree(alone.model)
    shutil.rmtree(alone.checkpoints / "checkpoint-4")
    write_json(alone.state_file, alone.state() | {"state": "failed"})
    run_action(composed([*TINY, f"method={method}", "training.dataloader_num_workers=1"]), alone)
    assert told(alone) == told(two)


def test_workers_start_anew_with_each_epoch(composed, tmp_path, write_rows):
    rows = write_rows(
        [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "No."} for n in range(20)]
    )
    words = [*TINY, "data=local", f"data.path={rows}", "training.max_steps=-1", "training.num_train_epochs=2"]
    alone, two = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "two")
    run_action(composed(words), alone)
    run_action(composed([*words, "training.dataloader_num_workers=2"]), two)
    assert len(told(two)[0]) == 6
    assert told(two) == told(alone)


def test_a_batch_leaves_a_worker_without_a_shared_file_for_each_tensor():
    batch = GlobalBatch([], 2, {"margins": torch.arange(3.0)})
    sent = bytes(ForkingPickler.dumps(batch))
    assert b"rebuild_storage" not in sent and b"torch_" not in sent
    again = pickle.loads(sent)
    assert again.num_rows == 2 and torch.equal(again.columns["margins"], batch.columns["margins"])
