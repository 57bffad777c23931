"""Sweeps on a cluster without one: what is submitted, and when nothing is, against stubs of Slurm's commands."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from alignment_lab.config import to_yaml
from alignment_lab.entrypoints.slurm_job import Attempts, may_pass, number
from alignment_lab.runtime.errors import HungError, RunError, UserError, WorkerError
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.sweep import grid, launcher, shared_work
from alignment_lab.sweep.launchers import slurm_queue
from alignment_lab.sweep.manifest import read_sweep

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=2",
    "training.global_batch=4",
    "eval.generations=0",
]
TINY += ["hydra/launcher=slurm"]
SIX = ["method=dpo,kto,ipo", "beta=0.01,0.1"]

# A cluster as three commands: sbatch counts and keeps scripts; squeue shows every job as `state` says; accounting knows nothing.
STUBS = {
    "sbatch": """
        count=$(($(cat $here/count 2>/dev/null || echo 0) + 1)); echo $count > $here/count
        cp "$1" $here/$count.sh
        grep -oP '(?<=--job-name=).*' "$1" > $here/$count.name
        grep -oP '(?<=--array=0-)[0-9]+' "$1" > $here/$count.last
        [ -e $here/killed ] && kill -9 $PPID
        echo Submitted batch job $count
    """,
    "squeue": """
        state=$(cat $here/state 2>/dev/null || echo PENDING)
        [ $state = GONE ] && { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
        [ $state = DOWN ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
        for one in $here/*.name; do
            [ -e $one ] || continue; job=$(basename $one .name)
            case "$*" in
                *--name=*) [[ "$*" == *--name=$(cat $one)* ]] && echo $job ;;
                *) for index in $(seq 0 $(cat $here/$job.last)); do echo "${job}_$index|$state|None|"; done ;;
            esac
        done
        exit 0
    """,
    "sacct": "[ $1 = -nXP ] || echo 'JobID|State|ExitCode|NodeList'",
    "scancel": 'echo "$*" >> $here/cancelled',
    "srun": "exit 1",
}


class Stub:
    """A sweep's command, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.here = folder, folder / "bin", folder / "slurm"
        self.bin.mkdir()
        self.here.mkdir()
        for name, text in STUBS.items():
            (self.bin / name).write_text(f"#!/bin/bash\nhere={self.here}\n{text}\n")
            (self.bin / name).chmod(0o755)
        self.environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )

    def sweep(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return self.python(str(ROOT / "train.py"), "--multirun", *TINY, *overrides)

    @property
    def scripts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.here.glob("*.sh"))]

    @property
    def path(self) -> Path:
        (found,) = (self.folder / "outputs").glob("sweep-*")
        return found


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path)


def test_a_sweep_is_submitted_and_given_again_does_nothing(stub):
    """One job for what is shared, one array behind it; every cell is there as it will run; the second command submits nothing."""
    first = stub.sweep(*SIX)
    assert first.returncode == 0, first.stderr
    assert (
        "6 cells" in first.stdout
        and "6 new" in first.stdout
        and f"sweep status outputs/{stub.path.name}" in first.stdout
    )
    share, cells = stub.scripts
    assert "--array=0-0%1" in share and "--dependency" not in share
    for line in (
        "--array=0-5%6",
        "--dependency=afterok:1",
        "--kill-on-invalid-dep=yes",
        "--requeue",
        "--signal=USR2@120",
        "--time=60",
    ):
        assert line in cells
    assert (
        f"export ALIGNMENT_LAB_CACHE={os.environ['ALIGNMENT_LAB_CACHE']}\n" in cells
        and "export PYTHONSAFEPATH=1\n" in cells
    )
    assert stat.S_IMODE((stub.path / ".submitit").stat().st_mode) == 0o700
    assert not list(stub.path.rglob("*.pkl"))

    known = json.loads((stub.path / "sweep.json").read_text())
    assert [cell["name"] for cell in known["cells"]] == [
        f"beta={beta},method={name}" for name in ("dpo", "kto", "ipo") for beta in ("0.01", "0.1")
    ]
    assert [cell["jobs"] for cell in known["cells"]] == [[f"2_{place}"] for place in range(6)]
    for cell in known["cells"]:
        run = RunDirectory(stub.path / cell["name"])
        assert (run.state()["state"], run.state()["id"]) == ("queued", cell["id"])
        assert (
            f"method={run.spec()['method']['name']}" in cell["overrides"]
            and f"beta={run.spec()['method']['beta']}" in cell["overrides"]
        )

    again = stub.sweep(*reversed(SIX))  # in another order it is the same sweep
    assert (
        again.returncode == 0
        and "6 waiting in the queue, left alone" in again.stdout
        and len(stub.scripts) == 2
    )
    (stub.here / "state").write_text("RUNNING")
    assert "6 running, left alone" in stub.sweep(*SIX).stdout and len(stub.scripts) == 2


def test_only_what_is_due_is_submitted(stub):
    """Of six: two finished, one failed, one was killed, one left in order, one never began."""
    assert stub.sweep(*SIX).returncode == 0
    (stub.here / "state").write_text("GONE")
    names = [cell.name for cell in read_sweep(stub.path).cells]
    for name, state in zip(names, ["finished", "finished", "failed", "running", "interrupted"], strict=False):
        run = RunDirectory(stub.path / name)
        run.state_file.write_text(
            json.dumps({**run.state(), "state": state, "error": "the reason" if state == "failed" else None})
        )
    said = stub.sweep(*SIX).stdout
    for line in (
        "2 finished, left alone",
        "2 cut off",
        "1 failed, to be tried again",
        "the reason",
        "1 new, or never begun",
    ):
        assert line in said
    assert "--array=0-3%4" in stub.scripts[-1]
    assert read_sweep(stub.path).submissions[-1].cells == [names[2], names[3], names[4], names[5]]

    table = stub.python("-m", "alignment_lab.sweep", "status", str(stub.path)).stdout
    assert "2 finished" in table and "4 missing" in table
    assert "4 cells submitted" in stub.python("-m", "alignment_lab.sweep", "retry", str(stub.path)).stdout
    (stub.here / "state").write_text("PENDING")
    assert "nothing to submit" in stub.python("-m", "alignment_lab.sweep", "retry", str(stub.path)).stdout
    assert "4 of 6 cells" in stub.python("-m", "alignment_lab.sweep", "cancel", str(stub.path)).stdout
    assert (
        len((stub.here / "cancelled").read_text().split()) == 7
    )  # and what they share, which this cluster never ends


def test_who_is_killed_while_submitting_submits_nothing_twice(stub):
    """The process dies when Slurm has taken the array and before it says its number; the next command finds it by its name."""
    (stub.here / "killed").touch()
    assert stub.sweep(*SIX).returncode == -9 and len(stub.scripts) == 1
    (stub.here / "killed").unlink()
    assert "6 new" in stub.sweep(*SIX).stdout and len(stub.scripts) == 3
    assert [one.job for one in read_sweep(stub.path).submissions] == ["1", "2", "3"]
    sweep = read_sweep(stub.path)
    sweep.submissions[-1].job = None
    for cell in sweep.cells:
        cell.jobs = []
    sweep.write()
    assert "6 waiting in the queue" in stub.sweep(*SIX).stdout and len(stub.scripts) == 3
    assert read_sweep(stub.path).cells[3].jobs == ["3_3"]


def test_without_an_answer_of_slurm_nothing_is_done(stub):
    assert stub.sweep(*SIX).returncode == 0
    (stub.here / "state").write_text("DOWN")
    refused = stub.sweep(*SIX)
    assert refused.returncode == 2 and "Unable to contact" in refused.stderr and len(stub.scripts) == 2


def test_cells_that_differ_in_nothing_that_matters_are_one(stub):
    said = stub.sweep("method=dpo", "training.save_steps=1,2,3", "training.seed=1,2").stdout
    assert "2 cells (6 were asked for" in said and len(read_sweep(stub.path).cells) == 2


def test_all_that_is_wrong_is_told_and_nothing_submitted(stub):
    """Three mistakes in a grid of four: one list, exit code 2, no directory."""
    (stub.folder / "bad.jsonl").write_text('{"prompt": "a"}\n')
    refused = stub.sweep("method=dpo,sft", "beta=0.1,-1", "data.path=bad.jsonl", "data=local")
    assert refused.returncode == 2 and not stub.scripts and not (stub.folder / "outputs").exists()
    for part in (
        "things are wrong, and nothing was started",
        "sft has no beta",
        "method.beta=-1.0",
        "bad.jsonl",
    ):
        assert part in refused.stderr
    assert stub.python(str(ROOT / "train.py"), *TINY).stderr.startswith(
        "error: hydra/launcher=slurm: give --multirun as well"
    )


def test_another_experiment_is_not_written_over(stub):
    place = "hydra.sweep.dir=mine"
    assert stub.sweep("training.seed=1,2", place).returncode == 0
    refused = stub.sweep("training.seed=1,2", "training.learning_rate=1e-3", place)
    assert (
        refused.returncode == 2
        and "training.learning_rate is" in refused.stderr
        and "hydra.sweep.dir=DIRECTORY" in refused.stderr
    )
    assert len(stub.scripts) == 1
    assert "1 new" in stub.sweep("training.seed=1,2,3", place).stdout  # more of the same
    assert len(read_sweep(stub.folder / "mine").cells) == 3


def test_what_slurm_is_asked_for(stub):
    """Settings by submitit's names; an additional dependency stands beside ours; a canary stands between."""
    more = [
        "partition=gpu",
        "account=me",
        "qos=low",
        "constraint=a100",
        "gpus_per_node=2",
        "cpus_per_task=3",
        "mem_gb=8",
        "timeout_min=7",
    ]
    more += [
        "signal_delay_s=30",
        "array_parallelism=4",
        "canary=true",
        "container=lab.sqsh",
        "setup=[module load cuda]",
    ]
    more += ["additional_parameters.+dependency='afterany:77'", "additional_parameters.+exclude=bad"]
    done = stub.sweep(
        *SIX,
        *(
            f"hydra.launcher.{one}" if ".+" not in one else f"+hydra.launcher.{one.replace('.+', '.')}"
            for one in more
        ),
    )
    assert done.returncode == 0, done.stderr
    share, canary, cells = stub.scripts
    for word in (
        "partition=gpu",
        "account=me",
        "qos=low",
        "constraint=a100",
        "gpus-per-node=2",
        "cpus-per-task=3",
        "mem=8192MB",
        "time=7",
    ):
        assert f"#SBATCH --{word}\n" in cells
    for word in (
        "--signal=USR2@30",
        "--array=0-5%4",
        "--exclude=bad",
        "module load cuda",
        "--container-image=lab.sqsh",
        " python3 -u -m ",
    ):
        assert word in cells
    assert "--dependency=afterok:1,afterany:77" in canary and "--dependency=afterok:2,afterany:77" in cells
    assert "afterok" not in share and "SRUN_CPUS_PER_TASK=3" in cells


def test_a_thousand_cells(stub):
    """Composed, checked, frozen and submitted within a minute of processor time (22 s when this was written)."""
    before, began = os.times(), time.monotonic()
    done = stub.sweep(
        "method=dpo,ipo", "beta=0.01,0.02,0.05,0.1,0.2", f"training.seed={','.join(map(str, range(100)))}"
    )
    used = os.times()
    assert done.returncode == 0, done.stderr
    seconds = used.children_user + used.children_system - before.children_user - before.children_system
    print(f"a thousand cells: {seconds:.1f} s of processor time, {time.monotonic() - began:.1f} s in all")
    assert "1000 cells" in done.stdout and "--array=0-999%256" in stub.scripts[-1]
    assert seconds < 60


def test_values_are_put_in_as_hydra_would(monkeypatch):
    """Cell for cell what Hydra composes by itself: values, groups, additions, interpolations and packages."""
    from hydra import initialize_config_dir

    from alignment_lab.config import compose

    cells = [
        ["method=dpo", "beta=0.2", "training.seed=3"],
        ["method=dpo", "beta=0.3", "name=x-${training.seed}"],
        ["recipe=demo", "training.max_steps=5", "method=simpo"],
        ["method=kto", "+method.desirable_weight=2.0", "parallel=lora"],
        ["method=sft", "data=local", "data.path=README.md", "model.dtype=bfloat16"],
    ]
    monkeypatch.chdir(ROOT)
    compose.register_with_hydra()
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        ours = grid.Composer("config")
        for overrides in cells:
            for _ in range(2):
                assert to_yaml(ours(overrides)) == to_yaml(compose.compose_experiment(overrides))


def test_names_of_sweeps():
    """What is swept is named; what was typed, in whatever order, makes the digits."""
    first = launcher.sweep_name(["method=dpo,kto", "model=tiny", "beta=0.1,1"])
    assert (
        first.startswith("beta=0.1,1_method=dpo,kto-") and len(first) == len("beta=0.1,1_method=dpo,kto-") + 6
    )
    assert launcher.sweep_name(["beta=0.1,1", "method=dpo,kto", "model=tiny"])[-6:] == first[-6:]
    assert launcher.sweep_name(["method=dpo,kto", "model=gpt2", "beta=0.1,1"])[-6:] != first[-6:]
    assert launcher.sweep_name(["model=tiny"]).startswith("one-")


def test_what_cells_share(composed):
    """A pass for each model, data and kind of reference; beta, learning rate and loss share one; a seed matters where it chooses rows."""
    short = ["model=tiny", "training.max_steps=2"]
    cells = {
        "dpo": ["method=dpo"],
        "ipo": ["method=ipo", "beta=0.01", "training.learning_rate=1e-3"],
        "kto": ["method=kto"],
        "kto2": ["method=kto", "beta=0.3"],
        "simpo": ["method=simpo"],
        "alone": ["method=sft"],
    }
    found = shared_work.shared_passes(
        [(name, *shared_work.shared_keys(composed([*short, *more]))) for name, more in cells.items()]
    )
    assert [(one.cell, one.tokens_only) for one in found] == [("dpo", False), ("kto", False)]

    def seeds(*more: str) -> list[tuple[str, bool]]:
        specs = [
            composed(["model=tiny", f"training.seed={seed}", f"beta={beta}", *more])
            for seed in (1, 2)
            for beta in (0.1, 0.2)
        ]
        return [
            (one.cell, one.tokens_only)
            for one in shared_work.shared_passes(
                [(str(n), *shared_work.shared_keys(spec)) for n, spec in enumerate(specs)]
            )
        ]

    assert seeds("training.max_steps=2") == [("0", False), ("2", False)]
    assert seeds("training.max_steps=-1") == [("0", False), ("2", True)]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (UserError("a mistake"), False),
        (RunError("out of memory on a card"), False),
        (RunError("no step could be taken"), False),
        (WorkerError("process 1 of 2 was ended by SIGKILL"), True),
        (WorkerError("process 1 of 2 failed: CUDA out of memory"), False),
        (HungError("nothing moved"), True),
        (RuntimeError("NCCL error"), True),
        (OSError(28, "No space left on device"), False),
        (OSError(5, "Input/output error"), True),
        (KeyError("a bug"), False),
    ],
)
def test_what_is_tried_again(error, again):
    assert may_pass(error) is again


@pytest.mark.parametrize(
    ("facts", "again"),
    [
        (
            "JobState=RUNNING RunTime=00:00:40 TimeLimit=00:01:00",
            True,
        ),  # Slurm's warning, or preemption with a while
        ("JobState=COMPLETING RunTime=00:00:40 TimeLimit=00:01:00", False),  # somebody cancels it
        ("JobState=COMPLETING RunTime=1-00:00:01 TimeLimit=1-00:00:00", True),  # its time is up
        ("JobState=COMPLETING RunTime=00:00:40 TimeLimit=UNLIMITED", False),
        ("JobState=PENDING RunTime=00:00:00 TimeLimit=00:01:00", False),  # queued again already
        ("", False),
    ],
)
def test_who_is_queued_again(facts, again, monkeypatch):
    monkeypatch.setattr(
        slurm_queue, "_run", lambda *_: subprocess.CompletedProcess([], 0, f"JobId=7 {facts} Requeue=1", "")
    )
    assert slurm_queue.should_requeue("7") is again


def test_a_job_of_an_array_is_named_alone(monkeypatch):
    """Slurm gives the array's number to its last job as well."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert number() == "7_3"


def test_attempts_are_those_of_a_submission(tmp_path):
    """Failures add up; time without a step adds up until there is one; another submission begins anew."""
    run = RunDirectory(tmp_path)
    assert [Attempts(run, "a").count("failures") for _ in range(2)] == [1, 2]
    assert [Attempts(run, "a").idle() for _ in range(2)] == [1, 2]
    (run.checkpoints / "checkpoint-7").mkdir(parents=True)
    assert Attempts(run, "a").idle() == 0 and Attempts(run, "a").idle() == 1
    assert Attempts(run, "b").count("failures") == 1


def test_the_doors_import_no_torch(door, tmp_path):
    ended = door("status", str(tmp_path), script=["-m", "alignment_lab.sweep"], PYTHONPATH=str(ROOT))
    assert ended.code == 2 and "no sweep.json" in ended.errors[-1]
    assert not {"torch", "transformers", "datasets"} & ended.imported


def test_every_setting_is_explained():
    text = (ROOT / "conf/hydra/launcher/slurm.yaml").read_text()
    keys = [line for line in text.splitlines() if line and not line.startswith(("#", "_target_"))]
    assert keys and all(" # " in line for line in keys)
    assert set(yaml.safe_load(text)) >= {
        "partition",
        "container",
        "wait",
        "canary",
        "max_attempts",
        "signal_delay_s",
    }
