"""Fresh processes: the same environment and threads for each, its own cache, its resource usage. No torch."""

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

# one thread is the fairer measure where others use the processors, too: threads wait for each other
THREADS = int(os.environ.get("BENCHMARK_THREADS", 0)) or os.cpu_count() or 1


class ProcessFailed(RuntimeError):
    """A process ended with an error; the message is the end of its output."""


class ProcessKilled(ProcessFailed):
    """The process was killed by the kernel: out of memory."""


@dataclass(frozen=True)
class ProcessUsage:
    """The resources that a whole process used, and its output."""

    seconds: float
    cpu_seconds: float
    peak_gb: float
    # processors that other processes kept busy meanwhile, on average; above 0.1 the seconds are unreliable
    others: float
    output: str


def environment(folder: Path, device: str = "cpu") -> dict[str, str]:
    """The inherited environment, with what must be equal on both sides, and without network access."""
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
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return os.environ | fixed | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


@contextmanager
def scratch(cache: Path | None = None) -> Iterator[Path]:
    """A temporary folder with the given cache of the lab, or with an empty one.

    The empty one holds the embedded weights, but no tokens and no reference log-probabilities.
    """
    folder = Path(tempfile.mkdtemp(prefix="alignment_lab_bench_"))
    try:
        if cache:
            (folder / "cache").symlink_to(cache)
        else:
            (folder / "cache").mkdir()
            _link_caches(folder / "cache")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link_caches(cache: Path) -> None:
    """Link what every run on this machine finds: the embedded weights, and which dtype is faster."""
    from alignment_lab.runtime.files import cache_directory

    (cache_directory() / "models").mkdir(parents=True, exist_ok=True)
    (cache / "models").symlink_to((cache_directory() / "models").resolve())
    with suppress(FileNotFoundError):
        shutil.copy(cache_directory() / "bfloat16.json", cache)


def run(
    command: Sequence[str], folder: Path, device: str = "cpu", timeout: float | None = None
) -> ProcessUsage:
    """Run a command from the root of the checkout, or raise ProcessFailed."""
    output_file = folder / "output.txt"
    busy_seconds, started = _busy_seconds(), time.perf_counter()
    with output_file.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(folder, device),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    seconds, busy_seconds = time.perf_counter() - started, _busy_seconds() - busy_seconds
    process.returncode = os.waitstatus_to_exitcode(status)
    output_text = output_file.read_text(errors="replace")
    if process.returncode:
        error_type = ProcessKilled if process.returncode == -9 else ProcessFailed
        raise error_type(f"{' '.join(command)}\n{output_text[-3000:]}\nexit code {process.returncode}")
    own_seconds = usage.ru_utime + usage.ru_stime
    return ProcessUsage(
        seconds,
        own_seconds,
        usage.ru_maxrss * 1024 / 1e9,
        max(0.0, busy_seconds - own_seconds) / seconds,
        output_text,
    )


def _busy_seconds() -> float:
    """CPU seconds of all processes since the system started, stolen time included; 0 without /proc/stat."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, hard, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def run_job(job: Job, cache: Path | None = None) -> dict[str, Any]:
    """Run a job in a fresh worker.py process; `process` holds the usage of that whole process."""
    with scratch(cache) as folder:
        job = replace(job, folder=str(folder), started=time.time())
        job.write(folder / "job.json")
        process = run(
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
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["process"] = {
        key: round(getattr(process, key), 3) for key in ("seconds", "cpu_seconds", "peak_gb", "others")
    }
    return result
