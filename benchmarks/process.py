"""Fresh processes: the same environment and threads for each, a cache of its own, and the kernel's account of what it took. No torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cases import ROOT, Job

THREADS = os.cpu_count() or 1


class Failed(RuntimeError):
    """A process ended with an error; the end of what it said."""


class Killed(Failed):
    """The kernel ended it: there was no memory left."""


@dataclass(frozen=True)
class Ended:
    """What a whole process took."""

    seconds: float
    cpu_seconds: float
    peak_gb: float
    others: float  # processors that other processes kept busy meanwhile, on average: above 0.1 the seconds are not to be trusted
    output: str


def environment(folder: Path, device: str = "cpu") -> dict[str, str]:
    """The inherited one, with what must be equal on both sides and no way to the network."""
    threads = str(THREADS)
    fixed = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "WANDB_MODE": "disabled",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "ALIGNMENT_LAB_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    return os.environ | fixed | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


@contextmanager
def scratch(cache: Path | None = None) -> Iterator[Path]:
    """A folder with a cold cache of the lab in it (no tokens, no reference), but with the embedded weights; or with the cache given."""
    folder = Path(tempfile.mkdtemp(prefix="alignment_lab_bench_"))
    try:
        if cache:
            (folder / "cache").symlink_to(cache)
        else:
            (folder / "cache").mkdir()
            _warm(folder / "cache")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _warm(cache: Path) -> None:
    """What every run of the lab on this machine finds: the embedded weights, and which dtype pays."""
    from alignment_lab.runtime.files import cache_directory

    (cache_directory() / "models").mkdir(parents=True, exist_ok=True)
    (cache / "models").symlink_to((cache_directory() / "models").resolve())
    with suppress(FileNotFoundError):
        shutil.copy(cache_directory() / "bfloat16.json", cache)


def run(command: Sequence[str], folder: Path, device: str = "cpu", timeout: float | None = None) -> Ended:
    """Run a command from the root of the checkout, or raise Failed."""
    output = folder / "output.txt"
    busy, started = _busy_seconds(), time.perf_counter()
    with output.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(folder, device),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    seconds, busy = time.perf_counter() - started, _busy_seconds() - busy
    process.returncode = os.waitstatus_to_exitcode(status)
    said = output.read_text(errors="replace")
    if process.returncode:
        kind = Killed if process.returncode == -9 else Failed
        raise kind(f"{' '.join(command)}\n{said[-3000:]}\nexit code {process.returncode}")
    own = used.ru_utime + used.ru_stime
    return Ended(seconds, own, used.ru_maxrss * 1024 / 1e9, max(0.0, busy - own) / seconds, said)


def _busy_seconds() -> float:
    """CPU seconds of all processes since the system started, with what a hypervisor withheld; 0 where the system does not tell."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, hard, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def work(job: Job, cache: Path | None = None) -> dict[str, Any]:
    """What worker.py gives for this job, in a process of its own; `process` is that whole process's account."""
    with scratch(cache) as folder:
        job = replace(job, folder=str(folder), started=time.time())
        job.write(folder / "job.json")
        ended = run(
            [
                sys.executable,
                "-m",
                "benchmarks.worker",
                str(folder / "job.json"),
                str(folder / "result.json"),
            ],
            folder,
            job.device,
        )
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    found["process"] = {
        key: round(getattr(ended, key), 3) for key in ("seconds", "cpu_seconds", "peak_gb", "others")
    }
    return found
