"""The code of a sweep, copied when it is submitted: editing a file while cells wait changes no cell."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from .. import provenance
from ..artifacts import write_json

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("alignment_lab", "conf", "train.py")


def files() -> list[str]:
    """The lab's own files, from its root: what git knows or would not ignore; without git, all but what Python leaves."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS]
    try:
        said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found = [name for name in said.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = []
    if not found:
        found = [str(file.relative_to(ROOT)) for part in PARTS for file in [ROOT / part, *(ROOT / part).rglob("*")]]
        found = [name for name in found if "__pycache__" not in name]
    return sorted(name for name in set(found) if (ROOT / name).is_file())


def frozen(sweep: Path) -> str:
    """Copy the code to SWEEP/.code/DIGEST, once; gives the digest."""
    found = hashlib.sha256()
    names = files()
    for name in names:
        found.update(f"{name}\0".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    digest = found.hexdigest()[:12]
    final = place(sweep, digest)
    if not final.exists():
        partial = final.with_name(f".{digest}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, partial / name)
        write_json(partial / provenance.FROZEN, provenance.git())
        partial.replace(final)
    return digest


def place(sweep: Path, digest: str) -> Path:
    """Where a copy lies."""
    return sweep / ".code" / digest
