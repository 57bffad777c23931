"""A sweep's jobs as scripts of submitit: the options of sbatch and srun. Refuses to know what a job runs.

No function is pickled: a job is `python -m alignment_lab.entrypoints.slurm_job SWEEP SUBMISSION`, which reads
its task from a file that is written before sbatch is called. So none of submitit's signal handlers stands
between Slurm and the run, and no file holds code.
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
from ...runtime.library_internals import submission_script, submitted_job_id
from ..manifest import Submission, Sweep
from ..snapshot import snapshot_folder

FORWARDED_VARIABLES = (  # of the environment, for every job; no secrets
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "WANDB_MODE",
)
MAX_ARRAY_SIZE = 1000  # tasks of an array: Slurm's default MaxArraySize
SUBMITIT_OPTIONS = (  # settings of hydra.launcher that submitit has by the same name
    "partition",
    "account",
    "qos",
    "constraint",
    "cpus_per_task",
    "gpus_per_node",
    "signal_delay_s",
    "array_parallelism",
)


def submit_array(sweep: Sweep, submission: Submission, lock: IO[str], *, afterok: str | None = None) -> str:
    """Call sbatch and return the array's number. With `afterok`, it starts when that job has ended well.

    The child inherits `lock`, so that the sweep stays locked until sbatch has ended. Raises UserError with
    sbatch's reason.
    """
    script = sweep.submitit_dir / f"{submission.id}.sh"
    script.write_text(script_text(sweep, submission, afterok))
    command = ["sbatch", str(script)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, pass_fds=[lock.fileno()])
    except FileNotFoundError:
        raise UserError(
            "hydra/launcher=slurm: sbatch: command not found: start a sweep on a cluster from a machine "
            "that has Slurm."
        ) from None
    if process.returncode:
        reason = " ".join(process.stderr.replace("sbatch: error:", "").split())
        raise UserError(f"sbatch: {reason}; this array was not submitted. Its script: {script}")
    script.chmod(0o600)
    return submitted_job_id(process.stdout)


def script_text(sweep: Sweep, submission: Submission, afterok: str | None) -> str:
    """The script of an array: submitit's, with the lab's command."""
    from submitit.slurm.slurm import SlurmExecutor

    settings = sweep.launcher_settings
    options = {name: settings[name] for name in SUBMITIT_OPTIONS if settings[name] is not None}
    if settings["mem_gb"]:
        options["mem"] = f"{int(settings['mem_gb'] * 1024)}MB"
    srun_args = ["--open-mode=append", *settings["srun_args"]]
    if settings["container"]:
        srun_args.append(f"--container-image={settings['container']}")
    try:
        executor = SlurmExecutor(sweep.submitit_dir.absolute())
        executor.update_parameters(
            **options,
            job_name=job_name(sweep, submission),
            time=settings["timeout_min"],
            nodes=submission.nodes,
            ntasks_per_node=1,
            stderr_to_stdout=True,
            srun_args=srun_args,
            setup=[*settings["setup"], *_setup_lines(sweep, submission)],
            additional_parameters=_additional_parameters(settings, afterok),
        )
    except RuntimeError as error:
        raise UserError(f"hydra/launcher=slurm: {error}") from None
    executor.parameters["map_count"] = len(submission.cells)
    return submission_script(executor, _job_command(sweep, submission), submission.id)


def _additional_parameters(settings: dict[str, Any], afterok: str | None) -> dict[str, Any]:
    """The user's, with our dependency before the one that they may hold."""
    parameters = {"requeue": True, **settings["additional_parameters"]}
    if afterok:
        users = [str(parameters["dependency"])] if "dependency" in parameters else []
        parameters["dependency"] = ",".join([f"afterok:{afterok}", *users])
        parameters["kill-on-invalid-dep"] = "yes"
    return parameters


def _job_command(sweep: Sweep, submission: Submission) -> str:
    settings = sweep.launcher_settings
    python = settings["python"] or ("python3" if settings["container"] else shlex.quote(sys.executable))
    path = shlex.quote(str(sweep.path.absolute()))
    return f"{python} -u -m alignment_lab.entrypoints.slurm_job {path} {submission.id}"


def job_name(sweep: Sweep, submission: Submission) -> str:
    """The jobs' name, unique: by it a submission is found again whose number was not recorded."""
    return f"{sweep.launcher_settings['name']}-{submission.id}"


def _setup_lines(sweep: Sweep, submission: Submission) -> list[str]:
    """Lines of bash that set the paths of code and cache, whatever a node's own environment holds."""
    variables = {
        "PYTHONPATH": str(snapshot_folder(sweep.path.absolute(), submission.code_digest)),
        "PYTHONSAFEPATH": "1",
        "ALIGNMENT_LAB_CACHE": str(cache_directory().absolute()),
        **{name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ},
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines[0] += '"${PYTHONPATH:+:$PYTHONPATH}"'
    lines.append(f"cd {shlex.quote(sweep.cwd)}")
    if cpus := sweep.launcher_settings["cpus_per_task"]:
        lines += [
            f"export SRUN_CPUS_PER_TASK={cpus}",
            f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{cpus}}}"',
        ]
    return lines


def split_into_arrays(names: Sequence[str]) -> list[list[str]]:
    """The cells of each array: at most MAX_ARRAY_SIZE."""
    return [list(names[start : start + MAX_ARRAY_SIZE]) for start in range(0, len(names), MAX_ARRAY_SIZE)]


def job_log(sweep: Sweep, job_id: str, task: int = 0) -> Path:
    """The log of a job such as 7_2; `task` is srun's task, one on each node."""
    return sweep.submitit_dir / f"{job_id}_{task}_log.out"
