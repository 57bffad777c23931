"""Where and with what the figures were taken, and what this machine multiplies matrices at. Imports torch only in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .cases import ROOT
from .process import THREADS, run, scratch

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "alignment-lab")
WORTH = 1.2  # how much faster bfloat16 must be for a hand to choose it


def describe() -> dict[str, Any]:
    """Processor, memory, versions and the commit that was measured."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": THREADS,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """The commit of the checkout, `-dirty` where it was changed."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    )
    return said.stdout.strip() or None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    known = facts.get("flags", "").split()
    useful = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in known]
    return f"{facts.get('model name', platform.processor()).strip()} ({', '.join(useful) or 'no avx512'})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def gemm() -> dict[str, float]:
    """GFLOP/s of a matrix product in float32 and in bfloat16, in a fresh process."""
    with scratch() as folder:
        said: dict[str, float] = json.loads(
            run([sys.executable, "-m", "benchmarks.machine"], folder).output.splitlines()[-1]
        )
    return said


def bf16_pays(rates: dict[str, float]) -> bool:
    """Whether somebody who tunes by hand computes in bfloat16 here."""
    return rates["bfloat16"] > WORTH * rates["float32"]


def _measure() -> dict[str, float]:
    import time

    import torch

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(1024, 1024, dtype=dtype) for _ in range(2))
        started, count = time.perf_counter(), -1
        while time.perf_counter() - started < 1:
            a @ b
            count += 1
            if count == 0:
                started = time.perf_counter()  # the first call prepares
        found[str(dtype).removeprefix("torch.")] = round(
            count * 2 * 1024**3 / (time.perf_counter() - started) / 1e9, 1
        )
    return found


if __name__ == "__main__":
    print(json.dumps(_measure()))
