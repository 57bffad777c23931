"""The code of a sweep, copied when it is submitted: editing a file while cells wait changes no cell."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from ..runtime import provenance
from ..runtime.files import write_json
from ..runtime.paths import CODE_ROOT

PARTS = ("alignment_lab", "conf", "train.py")


def code_files() -> list[str]:
    """The lab's own files, from its root: what git knows or would not ignore; without git, all but what Python leaves."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS]
    try:
        said = subprocess.run(asked, cwd=CODE_ROOT, capture_output=True, text=True, check=True).stdout
        found = [name for name in said.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = []
    if not found:
        found = [
            str(file.relative_to(CODE_ROOT))
            for part in PARTS
            for file in [CODE_ROOT / part, *(CODE_ROOT / part).rglob("*")]
        ]
        found = [name for name in found if "__pycache__" not in name]
    return sorted(name for name in set(found) if (CODE_ROOT / name).is_file())


def snapshot_code(sweep: Path) -> str:
    """Copy the code to SWEEP/.code/DIGEST, once; gives the digest."""
    found = hashlib.sha256()
    names = code_files()
    for name in names:
        found.update(f"{name}\0".encode() + hashlib.sha256((CODE_ROOT / name).read_bytes()).digest())
    digest = found.hexdigest()[:12]
    final = snapshot_folder(sweep, digest)
    if not final.exists():
        partial = final.with_name(f".{digest}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CODE_ROOT / name, partial / name)
        write_json(partial / provenance.GIT_SNAPSHOT, provenance.git())
        partial.replace(final)
    return digest


def snapshot_folder(sweep: Path, digest: str) -> Path:
    """Where a copy lies."""
    return sweep / ".code" / digest
