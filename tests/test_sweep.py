"""Sweeps on Slurm against stubs of its commands: what is submitted, and when nothing is."""

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
from alignment_lab.entrypoints.slurm_job import RetryCounter, is_transient, job_id
from alignment_lab.runtime.errors import HungError, RunError, UserError, WorkerError
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.sweep import cell_names, grid, shared_work
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

# Stubs of Slurm: sbatch counts and keeps scripts; squeue gives every job the state in the file `state`;
# accounting knows nothing.
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
        for file in $here/*.name; do
            [ -e $file ] || continue; job=$(basename $file .name)
            case "$*" in
                *--name=*) [[ "$*" == *--name=$(cat $file)* ]] && echo $job ;;
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
    """A sweep's command in a folder of its own, with the stubs on its PATH."""

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
        (path,) = (self.folder / "outputs").glob("sweep-*")
        return path


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path)


def test_a_sweep_is_submitted_once(stub):
    """One job for what cells share, an array behind it, a folder for each cell; then nothing more while Slurm
    has them, nor when it does not answer; then what is due.
    """
    first = stub.sweep(*SIX)
    assert first.returncode == 0, first.stderr
    assert (
        "6 cells" in first.stdout
        and "6 not started yet" in first.stdout
        and f"sweep status outputs/{stub.path.name}" in first.stdout
    )
    prewarm, cells = stub.scripts
    assert "--array=0-0%1" in prewarm and "--dependency" not in prewarm
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

    sweep = json.loads((stub.path / "sweep.json").read_text())
    assert [cell["name"] for cell in sweep["cells"]] == [
        f"beta={beta},method={name}" for name in ("dpo", "kto", "ipo") for beta in ("0.01", "0.1")
    ]
    assert [cell["jobs"] for cell in sweep["cells"]] == [[f"2_{index}"] for index in range(6)]
    for cell in sweep["cells"]:
        run = RunDirectory(stub.path / cell["name"])
        assert (run.state()["state"], run.state()["id"]) == ("queued", cell["id"])
        assert (
            f"method={run.spec()['method']['name']}" in cell["overrides"]
            and f"beta={run.spec()['method']['beta']}" in cell["overrides"]
        )

    again = stub.sweep(*reversed(SIX))  # in another order it is the same sweep
    assert again.returncode == 0 and "6 pending, left alone" in again.stdout and len(stub.scripts) == 2
    (stub.here / "state").write_text("RUNNING")
    assert "6 running, left alone" in stub.sweep(*SIX).stdout and len(stub.scripts) == 2
    (stub.here / "state").write_text("DOWN")
    refused = stub.sweep(*SIX)
    assert refused.returncode == 2 and "Unable to contact" in refused.stderr and len(stub.scripts) == 2
    (stub.here / "state").write_text("GONE")
    assert_only_what_is_due_is_submitted(stub)


def assert_only_what_is_due_is_submitted(stub):
    """Of six: two finished, one failed, one was killed, one was interrupted, one never started."""
    names = [cell.name for cell in read_sweep(stub.path).cells]
    for name, state in zip(names, ["finished", "finished", "failed", "running", "interrupted"], strict=False):
        run = RunDirectory(stub.path / name)
        run.state_file.write_text(
            json.dumps({**run.state(), "state": state, "error": "the reason" if state == "failed" else None})
        )
    output = stub.sweep(*SIX).stdout
    for line in (
        "2 finished, left alone",
        "2 interrupted, to be resumed",
        "1 failed, to be retried",
        "the reason",
        "1 not started yet",
    ):
        assert line in output
    assert "--array=0-3%4" in stub.scripts[-1]
    assert read_sweep(stub.path).submissions[-1].cells == [names[2], names[3], names[4], names[5]]

    table = stub.python("-m", "alignment_lab.sweep", "status", str(stub.path)).stdout
    assert "2 finished" in table and "4 missing" in table
    assert "4 cells submitted" in stub.python("-m", "alignment_lab.sweep", "retry", str(stub.path)).stdout
    (stub.here / "state").write_text("PENDING")
    assert "nothing to submit" in stub.python("-m", "alignment_lab.sweep", "retry", str(stub.path)).stdout
    assert "4 of 6 cells" in stub.python("-m", "alignment_lab.sweep", "cancel", str(stub.path)).stdout
    # and the prewarm jobs, which these stubs never end
    assert len((stub.here / "cancelled").read_text().split()) == 7


def test_a_command_that_is_killed_while_submitting_submits_nothing_twice(stub):
    """It dies before it records the array's number; the next command finds the array by its name."""
    (stub.here / "killed").touch()
    assert stub.sweep(*SIX).returncode == -9 and len(stub.scripts) == 1
    (stub.here / "killed").unlink()
    assert "6 not started yet" in stub.sweep(*SIX).stdout and len(stub.scripts) == 3
    assert [each.job_id for each in read_sweep(stub.path).submissions] == ["1", "2", "3"]
    sweep = read_sweep(stub.path)
    sweep.submissions[-1].job_id = None
    for cell in sweep.cells:
        cell.jobs = []
    sweep.write()
    assert "6 pending" in stub.sweep(*SIX).stdout and len(stub.scripts) == 3
    assert read_sweep(stub.path).cells[3].jobs == ["3_3"]


def test_cells_with_the_same_id_are_one(stub):
    output = stub.sweep("method=dpo", "training.save_steps=1,2,3", "training.seed=1,2").stdout
    assert "2 cells (6 were requested" in output and len(read_sweep(stub.path).cells) == 2


def test_all_problems_are_listed_and_nothing_is_submitted(stub):
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


def test_another_experiment_is_not_overwritten(stub):
    folder = "hydra.sweep.dir=mine"
    assert stub.sweep("training.seed=1,2", folder).returncode == 0
    refused = stub.sweep("training.seed=1,2", "training.learning_rate=1e-3", folder)
    assert (
        refused.returncode == 2
        and "training.learning_rate is" in refused.stderr
        and "hydra.sweep.dir=DIRECTORY" in refused.stderr
    )
    assert len(stub.scripts) == 1
    assert "1 not started yet" in stub.sweep("training.seed=1,2,3", folder).stdout  # the sweep grows
    assert len(read_sweep(stub.folder / "mine").cells) == 3


def test_settings_reach_sbatch(stub):
    """Settings by submitit's names; an additional dependency stands beside ours; a canary is in between."""
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
            f"hydra.launcher.{setting}"
            if ".+" not in setting
            else f"+hydra.launcher.{setting.replace('.+', '.')}"
            for setting in more
        ),
    )
    assert done.returncode == 0, done.stderr
    prewarm, canary, cells = stub.scripts
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
    assert "afterok" not in prewarm and "SRUN_CPUS_PER_TASK=3" in cells


def test_hundreds_of_cells(stub):
    """Composed, checked and submitted by one command, in seconds and not in minutes."""
    before, began = os.times(), time.monotonic()
    done = stub.sweep(
        "method=dpo,ipo", "beta=0.01,0.02,0.05,0.1,0.2", f"training.seed={','.join(map(str, range(30)))}"
    )
    used = os.times()
    assert done.returncode == 0, done.stderr
    seconds = used.children_user + used.children_system - before.children_user - before.children_system
    print(f"300 cells: {seconds:.1f} s of processor time, {time.monotonic() - began:.1f} s in all")
    assert "300 cells" in done.stdout and "--array=0-299%256" in stub.scripts[-1]
    assert seconds < 60


def test_a_composed_cell_is_what_hydra_composes(monkeypatch):
    """Values, groups, additions, interpolations and packages."""
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
    """The swept overrides are in the name; all overrides, in any order, make the digits."""
    first = cell_names.sweep_name(["method=dpo,kto", "model=tiny", "beta=0.1,1"])
    assert (
        first.startswith("beta=0.1,1_method=dpo,kto-") and len(first) == len("beta=0.1,1_method=dpo,kto-") + 6
    )
    assert cell_names.sweep_name(["beta=0.1,1", "method=dpo,kto", "model=tiny"])[-6:] == first[-6:]
    assert cell_names.sweep_name(["method=dpo,kto", "model=gpt2", "beta=0.1,1"])[-6:] != first[-6:]
    assert cell_names.sweep_name(["model=tiny"]).startswith("one-")


def test_what_cells_share(composed):
    """A pass for each model, data and kind of reference; beta, learning rate and loss share one.

    A seed matters where it chooses rows.
    """
    short = ["model=tiny", "training.max_steps=2"]
    cells = {
        "dpo": ["method=dpo"],
        "ipo": ["method=ipo", "beta=0.01", "training.learning_rate=1e-3"],
        "kto": ["method=kto"],
        "kto2": ["method=kto", "beta=0.3"],
        "simpo": ["method=simpo"],
        "alone": ["method=sft"],
    }
    passes = shared_work.shared_passes(
        [(name, *shared_work.shared_keys(composed([*short, *more]))) for name, more in cells.items()]
    )
    assert [(each.cell, each.tokens_only) for each in passes] == [("dpo", False), ("kto", False)]

    def seeds(*more: str) -> list[tuple[str, bool]]:
        specs = [
            composed(["model=tiny", f"training.seed={seed}", f"beta={beta}", *more])
            for seed in (1, 2)
            for beta in (0.1, 0.2)
        ]
        return [
            (each.cell, each.tokens_only)
            for each in shared_work.shared_passes(
                [(str(n), *shared_work.shared_keys(spec)) for n, spec in enumerate(specs)]
            )
        ]

    assert seeds("training.max_steps=2") == [("0", False), ("2", False)]
    assert seeds("training.max_steps=-1") == [("0", False), ("2", True)]


@pytest.mark.parametrize(
    ("error", "retried"),
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
def test_transient_errors_are_retried(error, retried):
    assert is_transient(error) is retried


@pytest.mark.parametrize(
    ("facts", "requeued"),
    [
        (
            "JobState=RUNNING RunTime=00:00:40 TimeLimit=00:01:00",
            True,
        ),  # Slurm's warning, or preemption with a grace time
        ("JobState=COMPLETING RunTime=00:00:40 TimeLimit=00:01:00", False),  # cancelled
        ("JobState=COMPLETING RunTime=1-00:00:01 TimeLimit=1-00:00:00", True),  # the time limit
        ("JobState=COMPLETING RunTime=00:00:40 TimeLimit=UNLIMITED", False),
        ("JobState=PENDING RunTime=00:00:00 TimeLimit=00:01:00", False),  # requeued already
        ("", False),
    ],
)
def test_which_jobs_are_requeued(facts, requeued, monkeypatch):
    monkeypatch.setattr(
        slurm_queue,
        "_run_command",
        lambda *_: subprocess.CompletedProcess([], 0, f"JobId=7 {facts} Requeue=1", ""),
    )
    assert slurm_queue.should_requeue("7") is requeued


def test_the_number_of_an_array_task(monkeypatch):
    """Slurm gives the array's number to its last task as well."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert job_id() == "7_3"


def test_retries_are_counted_for_each_submission(tmp_path):
    """Failures add up; time-outs without a step add up until there is one; another submission starts at 0."""
    run = RunDirectory(tmp_path)
    assert [RetryCounter(run, "a").increment("failures") for _ in range(2)] == [1, 2]
    assert [RetryCounter(run, "a").count_idle_timeout() for _ in range(2)] == [1, 2]
    (run.checkpoints / "checkpoint-7").mkdir(parents=True)
    assert (
        RetryCounter(run, "a").count_idle_timeout() == 0 and RetryCounter(run, "a").count_idle_timeout() == 1
    )
    assert RetryCounter(run, "b").increment("failures") == 1


def test_the_command_imports_no_torch(run_command, tmp_path):
    ended = run_command("status", str(tmp_path), script=["-m", "alignment_lab.sweep"], PYTHONPATH=str(ROOT))
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
