"""A sweep's jobs as submitit writes their scripts: what sbatch and srun are told, and nothing of what runs.

No function is pickled: a job is `python -m alignment_lab.entrypoints.slurm_job SWEEP SUBMISSION`, which reads what to do from files that lie there before
sbatch is called. So none of submitit's signal handlers is between Slurm and the run, and there is no code in files.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ...runtime.errors import UserError
from ...runtime.files import cache_directory
from ..manifest import Submission, Sweep
from ..snapshot import snapshot_folder

PASSED_ON = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "WANDB_MODE",
)  # no secrets
LIMIT = 1000  # jobs of an array: Slurm's MaxArraySize as it comes


def submit(sweep: Sweep, submission: Submission, lock: IO[str], *, after: str | None = None) -> str:
    """Call sbatch; gives the number of the array. `after`: the array that must have ended well before. Raises UserError with its reason."""
    script = sweep.orders / f"{submission.mark}.sh"
    script.write_text(script_text(sweep, submission, after))
    try:
        done = subprocess.run(
            ["sbatch", str(script)], capture_output=True, text=True, pass_fds=[lock.fileno()]
        )
    except FileNotFoundError:
        raise UserError(
            "hydra/launcher=slurm: no sbatch here: a sweep on a cluster is started where Slurm is."
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.replace("sbatch: error:", "").split())
        raise UserError(f"sbatch: {said}; nothing of this was submitted. Its script: {script}")
    from submitit.slurm.slurm import SlurmExecutor

    number = SlurmExecutor._get_job_id_from_submission_command(done.stdout)
    script.chmod(0o600)
    return number


def script_text(sweep: Sweep, submission: Submission, after: str | None) -> str:
    """The script of an array: submitit's, with the lab's command."""
    from submitit.slurm.slurm import SlurmExecutor

    settings = sweep.launcher
    more = {"requeue": True, **settings["additional_parameters"]}
    if after:
        others = [str(more["dependency"])] if "dependency" in more else []
        more |= {"dependency": ",".join([f"afterok:{after}", *others]), "kill-on-invalid-dep": "yes"}
    names = (
        "partition",
        "account",
        "qos",
        "constraint",
        "cpus_per_task",
        "gpus_per_node",
        "signal_delay_s",
        "array_parallelism",
    )
    asked = {name: settings[name] for name in names if settings[name] is not None}
    if settings["mem_gb"]:
        asked["mem"] = f"{int(settings['mem_gb'] * 1024)}MB"
    srun = ["--open-mode=append", *settings["srun_args"]]
    if settings["container"]:
        srun.append(f"--container-image={settings['container']}")
    try:
        executor = SlurmExecutor(sweep.orders.absolute())
        executor.update_parameters(
            **asked,
            job_name=job_name(sweep, submission),
            time=settings["timeout_min"],
            nodes=submission.nodes,
            ntasks_per_node=1,
            stderr_to_stdout=True,
            srun_args=srun,
            setup=[*settings["setup"], *_environment(sweep, submission)],
            additional_parameters=more,
        )
    except RuntimeError as error:
        raise UserError(f"hydra/launcher=slurm: {error}") from None
    executor.parameters["map_count"] = len(submission.cells)
    python = settings["python"] or ("python3" if settings["container"] else shlex.quote(sys.executable))
    return executor._make_submission_file_text(
        f"{python} -u -m alignment_lab.entrypoints.slurm_job {shlex.quote(str(sweep.path.absolute()))} {submission.mark}",
        submission.mark,
    )


def job_name(sweep: Sweep, submission: Submission) -> str:
    """The jobs' name: by it a submission is found again whose number nobody wrote down."""
    return f"{sweep.launcher['name']}-{submission.mark}"


def _environment(sweep: Sweep, submission: Submission) -> list[str]:
    """Lines that say where the code and the cache are, whatever a node's own environment has."""
    code = str(snapshot_folder(sweep.path.absolute(), submission.code))
    wanted: dict[str, Any] = {
        "PYTHONPATH": code,
        "PYTHONSAFEPATH": "1",
        "ALIGNMENT_LAB_CACHE": str(cache_directory().absolute()),
    }
    wanted |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in wanted.items()]
    lines[0] += '"${PYTHONPATH:+:$PYTHONPATH}"'
    lines.append(f"cd {shlex.quote(sweep.cwd)}")
    if cpus := sweep.launcher["cpus_per_task"]:
        lines += [
            f"export SRUN_CPUS_PER_TASK={cpus}",
            f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{cpus}}}"',
        ]
    return lines


def chunks(names: Sequence[str]) -> list[list[str]]:
    """As many cells as an array takes."""
    return [list(names[start : start + LIMIT]) for start in range(0, len(names), LIMIT)]


def job_log(sweep: Sweep, job: str, task: int = 0) -> Path:
    """What a job wrote; `job` as 7_2."""
    return sweep.orders / f"{job}_{task}_log.out"
