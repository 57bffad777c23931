"""Where a run comes from: the command, the code with its uncommitted changes, the packages, the machine.

Imports no torch, and knows nothing of the experiment.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from . import hardware
from .files import read_json, utc_now, write_json
from .hardware import processor_name
from .paths import CODE_ROOT
from .redaction import redact_data

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
GIT_SNAPSHOT = "git.json"  # beside a snapshot of the code: `git_state` when it was taken
MAX_CHANGES = 5  # packages that a sentence lists


def record_attempt(file: Path, number: int, devices: int) -> str | None:
    """Add this attempt to provenance.json: when, command, code, packages, machine. `devices`: see `collect`.

    The file's own entries are those of the attempt that took the first step. Returns a sentence where
    packages, Python or the lab's code are not those of the attempt before.
    """
    provenance = read_json(file) or {}
    earlier = attempts(provenance)
    attempt = {"number": number, "started": utc_now(), **collect(devices)}
    # the changes of a checkout may be long: they are written again only where they are others
    brief = {**attempt, "git": _without_known_diff(attempt["git"], provenance.get("git"))}
    write_json(file, {**(provenance or attempt), "attempts": [*earlier, brief]})
    return _describe_changes(earlier[-1], attempt) if earlier else None


def record_content(file: Path, content: Mapping[str, Any], *, first_step: bool) -> None:
    """Add to this attempt what it found: digests of content and files, counts of rows.

    `first_step`: it starts from the first step, so that the file's own entries become those of this attempt.
    """
    provenance = read_json(file) or {}
    *earlier, attempt = attempts(provenance)
    attempt = {**attempt, **content}
    own = {key: value for key, value in provenance.items() if key != "attempts"}
    if first_step:
        git = attempt["git"] and {"diff": (own.get("git") or {}).get("diff", ""), **attempt["git"]}
        own = {**attempt, "git": git}
    write_json(file, {**own, "attempts": [*earlier, attempt]})


def attempts(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every attempt of a provenance.json, oldest first; older versions of the lab kept one."""
    recorded: list[dict[str, Any]] = provenance.get("attempts") or ([dict(provenance)] if provenance else [])
    return recorded


def _without_known_diff(git: dict[str, Any] | None, known: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if git is None or not known or git.get("diff") != known.get("diff"):
        return git
    return {key: value for key, value in git.items() if key != "diff"}


def _describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """`since the attempt before: torch 2.12.0 is now 2.13.0`; None where nothing changed."""
    there, here = (_versions(attempt) for attempt in (before, now))
    changed = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    if not changed:
        return None
    listed = [
        f"{name} {there.get(name, 'not installed')} is now {here.get(name, 'not installed')}"
        for name in changed[:MAX_CHANGES]
    ]
    more = f", and {len(changed) - MAX_CHANGES} more" if len(changed) > MAX_CHANGES else ""
    return f"since the attempt before: {', '.join(listed)}{more}; numbers may differ from here on"


def _versions(attempt: Mapping[str, Any]) -> dict[str, str]:
    git, machine = attempt.get("git") or {}, attempt.get("hardware") or {}
    code = f"{git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else None
    own = {"the lab's code": code, "python": machine.get("python")}
    return {name: value for name, value in own.items() if value} | dict(attempt.get("packages") or {})


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
