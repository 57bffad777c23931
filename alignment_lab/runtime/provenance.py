"""Where a run comes from: the command, the code with its uncommitted changes, the packages, the machine.

Imports no torch, and knows nothing of the experiment.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from . import hardware
from .hardware import processor_name
from .paths import CODE_ROOT
from .redaction import redact_data

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
GIT_SNAPSHOT = "git.json"  # beside a snapshot of the code: `git_state` when it was taken


def collect(devices: int) -> dict[str, Any]:
    """provenance.json without its content hashes, for a run on this many of the machine's accelerators."""
    git = json.loads((CODE_ROOT / GIT_SNAPSHOT).read_text()) if _is_snapshot() else git_state()
    return {
        "command": redact_data([sys.executable, *sys.argv]),
        "directory": redact_data(os.getcwd()),
        "git": redact_data(git),
        "packages": _packages(),
        "hardware": _hardware() | _accelerators(devices),
    }


def _is_snapshot() -> bool:
    return (CODE_ROOT / GIT_SNAPSHOT).exists()


def git_state() -> dict[str, Any] | None:
    """Commit and uncommitted diff of the lab's code; None where it is not a git checkout."""
    try:
        # Code in a user's repository, installed into its .venv/, is not what the commit of it has.
        _run("git", "ls-files", "--error-unmatch", "alignment_lab/__init__.py")
        commit = _run("git", "rev-parse", "HEAD").strip()
        return {
            "commit": commit,
            "diff": _run("git", "diff", "HEAD", "--", "."),
            "dirty": bool(_run("git", "status", "--porcelain", "--", ".").strip()),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _run(*command: str) -> str:
    return subprocess.run(command, cwd=CODE_ROOT, capture_output=True, text=True, check=True).stdout


def _packages() -> dict[str, str]:
    installed = metadata.distributions()
    return dict(sorted((package.metadata["Name"].lower(), package.version) for package in installed))


def _hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1) if memory else None,
    }


def _accelerators(count: int) -> dict[str, Any]:
    """The accelerators that the run uses, as the driver names them; empty where it uses none."""
    names = hardware.accelerator_names()[:count]
    if not names:
        return {}
    version = DRIVER_VERSION.read_text(errors="replace").splitlines()[0] if DRIVER_VERSION.exists() else None
    return {"accelerators": names, "driver": version, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
