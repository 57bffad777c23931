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


def losses_and_weights(run: RunDirectory) -> tuple[list[float], str]:
    return [row["loss"] for row in run.metrics()], file_digest(run.model / "model.safetensors")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_workers_change_nothing(method, composed, tmp_path):
    """Nor where a run that was cut off goes on with other ones."""
    in_process, with_workers = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "two")
    run_action(composed([*TINY, f"method={method}"]), in_process)
    run_action(composed([*TINY, f"method={method}", "training.dataloader_num_workers=2"]), with_workers)
    assert losses_and_weights(with_workers) == losses_and_weights(in_process)
    shutil.rmtree(in_process.model)
    shutil.rmtree(in_process.checkpoints / "checkpoint-4")
    write_json(in_process.state_file, in_process.state() | {"state": "failed"})
    run_action(composed([*TINY, f"method={method}", "training.dataloader_num_workers=1"]), in_process)
    assert losses_and_weights(in_process) == losses_and_weights(with_workers)


def test_workers_start_anew_with_each_epoch(composed, tmp_path, write_rows):
    rows = write_rows(
        [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "No."} for n in range(20)]
    )
    overrides = [
        *TINY,
        "data=local",
        f"data.path={rows}",
        "training.max_steps=-1",
        "training.num_train_epochs=2",
    ]
    in_process, with_workers = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "two")
    run_action(composed(overrides), in_process)
    run_action(composed([*overrides, "training.dataloader_num_workers=2"]), with_workers)
    assert len(losses_and_weights(with_workers)[0]) == 6
    assert losses_and_weights(with_workers) == losses_and_weights(in_process)


def test_a_batch_leaves_a_worker_without_a_shared_file_for_each_tensor():
    batch = GlobalBatch([], 2, {"margins": torch.arange(3.0)})
    pickled = bytes(ForkingPickler.dumps(batch))
    assert b"rebuild_storage" not in pickled and b"torch_" not in pickled
    unpickled = pickle.loads(pickled)
    assert unpickled.num_rows == 2 and torch.equal(unpickled.columns["margins"], batch.columns["margins"])
