"""Where a run comes from: the command, the code with its uncommitted changes, the packages, the machine."""

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
from .redaction import redacted

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
GIT_SNAPSHOT = "git.json"  # beside a copy of the code: what git said of it when it was made


def collect(devices: int) -> dict[str, Any]:
    """provenance.json without its content hashes, of a run that uses so many of this machine's accelerators. Imports no torch."""
    return {
        "command": redacted([sys.executable, *sys.argv]),
        "directory": redacted(os.getcwd()),
        "git": redacted(_snapshot_git() if (CODE_ROOT / GIT_SNAPSHOT).exists() else git_state()),
        "packages": _packages(),
        "hardware": _hardware() | _accelerators(devices),
    }


def _snapshot_git() -> Any:
    return json.loads((CODE_ROOT / GIT_SNAPSHOT).read_text())


def git_state() -> dict[str, Any] | None:
    """Commit and uncommitted diff of the lab's code; None where it is no checkout."""
    try:
        # Installed into a repository of the user's, the code is not what that repository has under this commit.
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
    return dict(sorted((found.metadata["Name"].lower(), found.version) for found in metadata.distributions()))


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
    """By the driver's names; nothing where there are none, or none is used."""
    models = hardware.accelerator_names()[:count]
    version = DRIVER_VERSION.read_text(errors="replace").splitlines()[0] if DRIVER_VERSION.exists() else None
    return (
        {"accelerators": models, "driver": version, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
        if models
        else {}
    )
