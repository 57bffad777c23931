"""What Slurm says of jobs: whether they wait, run or have ended, and how."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from ...runtime.errors import UserError

ALIVE = {
    *(
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "REQUEUED",
        "RESIZING",
        "SUSPENDED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
    ),
    *("SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"),
}
JOBS_PER_COMMAND = 200  # job numbers of one command
UNKNOWN = "Invalid job id"  # what squeue says of jobs that have left its memory


@dataclass(frozen=True)
class Job:
    """One job, or one of an array's."""

    state: str  # Slurm's word
    reason: str = ""  # why it waits, or how it ended
    node: str = ""

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ALIVE


def job_states(jobs: Iterable[str]) -> dict[str, Job]:
    """By number, such as 7_2: from the queue, else from accounting. Raises UserError where Slurm does not answer."""
    wanted = dict.fromkeys(jobs)
    numbers = list(dict.fromkeys(job.partition("_")[0] for job in wanted))
    found: dict[str, Job] = {}
    for start in range(0, len(numbers), JOBS_PER_COMMAND):
        part = ",".join(numbers[start : start + JOBS_PER_COMMAND])
        for line in _squeue("-h", "-r", "-t", "all", "-j", part, "-o", "%i|%T|%r|%N").splitlines():
            job, state, reason, node = line.split("|")
            found[job] = Job(state, reason, node)
    rest = list(dict.fromkeys(job.partition("_")[0] for job in wanted if job not in found))
    for start in range(0, len(rest), JOBS_PER_COMMAND):
        for job, one in _accounted(rest[start : start + JOBS_PER_COMMAND]).items():
            found.setdefault(job, one)
    return {job: found[job] for job in wanted if job in found}


def find_job(name: str, since: str) -> str | None:
    """The number of the job, or the array, that was submitted by this name; None where there is none."""
    said = _squeue("-h", "-t", "all", f"--name={name}", "-o", "%F").split()
    said = said or _run("sacct", "-nXP", f"--name={name}", "-S", since[:10], "-o", "JobID").stdout.split()
    return said[0].partition("_")[0] if said else None


def should_requeue(job: str) -> bool:
    """Whether Slurm means a job that got a signal to run again: it warned of a limit, preempts it, or the time was up.

    A job that somebody cancels is COMPLETING by then, as is one that is queued again already; one that preemption gives a while is RUNNING.
    """
    facts = dict(
        re.findall(r"\b(JobState|RunTime|TimeLimit)=(\S+)", _run("scontrol", "show", "job", "-o", job).stdout)
    )
    if facts.get("JobState") in ("RUNNING", "SUSPENDED"):
        return True
    ran, limit = _seconds(facts.get("RunTime", "")), _seconds(facts.get("TimeLimit", ""))
    return (
        facts.get("JobState") in ("COMPLETING", "TIMEOUT")
        and ran is not None
        and limit is not None
        and ran >= limit
    )


def _seconds(text: str) -> int | None:
    """Of 1-02:03:04; None of UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _squeue(*options: str) -> str:
    done = _run("squeue", *options)
    if done.returncode and UNKNOWN not in done.stderr:
        raise UserError(
            f"squeue: {_first(done.stderr)}: what runs is not known, and nothing was done; try again when Slurm answers."
        )
    return done.stdout


def _accounted(numbers: list[str]) -> dict[str, Job]:
    """What accounting remembers; nothing where there is none."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    words = [word for number in numbers for word in ("-j", number)]
    done = _run("sacct", "-X", "--parsable2", "-o", "JobID,State,ExitCode,NodeList", *words)
    found = {}
    for job, facts in SlurmInfoWatcher().read_info(done.stdout).items():
        state, _, rest = facts["State"].partition(" ")
        found[job] = Job(state, rest or f"exit code {facts['ExitCode']}", facts["NodeList"])
    return found


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: no such command here: a sweep on a cluster is started where Slurm is."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]}: no answer within two minutes; try again when Slurm answers."
        ) from None


def _first(text: str) -> str:
    return (text.strip().splitlines() or ["failed"])[0]


def cancel(jobs: Iterable[str]) -> None:
    """End jobs that wait or run; raises UserError where Slurm refuses."""
    wanted = list(jobs)
    for start in range(0, len(wanted), JOBS_PER_COMMAND):
        done = _run("scancel", *wanted[start : start + JOBS_PER_COMMAND])
        if done.returncode:
            raise UserError(f"scancel: {_first(done.stderr)}")
