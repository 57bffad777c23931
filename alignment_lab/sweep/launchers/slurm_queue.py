"""Slurm's answers about jobs: whether they wait, run or have ended, and how; and cancelling them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...runtime.errors import UserError

WAITING_STATES = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"}
ACTIVE_STATES = WAITING_STATES | {
    *("RUNNING", "COMPLETING", "RESIZING", "SUSPENDED", "REQUEUE_FED"),
    *("SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"),
}
JOBS_PER_COMMAND = 200  # job numbers in one command line
UNKNOWN_JOB = "Invalid job id"  # squeue's message about jobs that it has forgotten


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one task of an array."""

    state: str  # Slurm's own name, such as PENDING
    reason: str = ""  # why it waits, or how it ended
    node: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE_STATES


def given_reason(job: SlurmJob) -> str:
    """Slurm's reason, empty where it gives none."""
    return "" if job.reason == "None" else job.reason


def query_jobs(job_ids: Iterable[str]) -> dict[str, SlurmJob]:
    """Jobs by number, such as 7_2: from the queue, else from accounting.

    Raises UserError where Slurm does not answer.
    """
    requested = list(dict.fromkeys(job_ids))
    jobs: dict[str, SlurmJob] = {}
    for array_ids in _batches(_array_ids(requested)):
        lines = _squeue("-h", "-r", "-t", "all", "-j", ",".join(array_ids), "-o", "%i|%T|%r|%N").splitlines()
        for line in lines:
            job_id, state, reason, node = line.split("|")
            jobs[job_id] = SlurmJob(state, reason, node)
    for array_ids in _batches(_array_ids([job_id for job_id in requested if job_id not in jobs])):
        for job_id, job in _query_accounting(array_ids).items():
            jobs.setdefault(job_id, job)
    return {job_id: jobs[job_id] for job_id in requested if job_id in jobs}


def _array_ids(job_ids: Iterable[str]) -> list[str]:
    """7_2, 7_3, 8_0 -> 7, 8."""
    return list(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))


def _batches(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(job_ids), JOBS_PER_COMMAND):
        yield job_ids[start : start + JOBS_PER_COMMAND]


def find_job_id(name: str, since: str) -> str | None:
    """The number of the job, or the array, that was submitted with this name; None where there is none."""
    job_ids = _squeue("-h", "-t", "all", f"--name={name}", "-o", "%F").split()
    if not job_ids:
        command = ("sacct", "-nXP", f"--name={name}", "-S", since[:10], "-o", "JobID")
        job_ids = _run_command(*command).stdout.split()
    return job_ids[0].partition("_")[0] if job_ids else None


def should_requeue(job_id: str) -> bool:
    """Whether Slurm wants a job that got a signal to run again: its time is (almost) up, or it is preempted.

    A job that somebody cancels is COMPLETING by then, and so is one that is requeued already; a job that is
    preempted with a grace time is RUNNING.
    """
    output = _run_command("scontrol", "show", "job", "-o", job_id).stdout
    facts = dict(re.findall(r"\b(JobState|RunTime|TimeLimit)=(\S+)", output))
    if facts.get("JobState") in ("RUNNING", "SUSPENDED"):
        return True
    run_time = _parse_duration(facts.get("RunTime", ""))
    time_limit = _parse_duration(facts.get("TimeLimit", ""))
    return (
        facts.get("JobState") in ("COMPLETING", "TIMEOUT")
        and run_time is not None
        and time_limit is not None
        and run_time >= time_limit
    )


def _parse_duration(text: str) -> int | None:
    """Seconds of 1-02:03:04; None of UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel jobs that wait or run; raises UserError where Slurm refuses."""
    for batch in _batches(list(job_ids)):
        process = _run_command("scancel", *batch)
        if process.returncode:
            raise UserError(f"scancel: {_first_line(process.stderr)}")


def _squeue(*options: str) -> str:
    process = _run_command("squeue", *options)
    if process.returncode and UNKNOWN_JOB not in process.stderr:
        raise UserError(
            f"squeue: {_first_line(process.stderr)}: the state of the jobs is unknown, and nothing was done; "
            "try again when Slurm answers."
        )
    return process.stdout


def _query_accounting(array_ids: Iterable[str]) -> dict[str, SlurmJob]:
    """What accounting remembers; empty where there is no accounting."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    options = [option for array_id in array_ids for option in ("-j", array_id)]
    process = _run_command("sacct", "-X", "--parsable2", "-o", "JobID,State,ExitCode,NodeList", *options)
    jobs = {}
    for job_id, facts in SlurmInfoWatcher().read_info(process.stdout).items():
        state, _, detail = facts["State"].partition(" ")  # CANCELLED by 0
        jobs[job_id] = SlurmJob(state, detail or f"exit code {facts['ExitCode']}", facts["NodeList"])
    return jobs


def _run_command(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: command not found: start a sweep on a cluster from a machine that has Slurm."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]}: no answer within two minutes; try again when Slurm answers."
        ) from None


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["failed"])[0]
