"""The code of a sweep, copied when it is submitted: editing a file while cells wait changes no cell.

SWEEP/.code/DIGEST holds the lab's own files and, under plugins/, the modules that `plugin` names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from ..config.plugins import PLUGIN_COPIES, loaded_plugins
from ..runtime import provenance
from ..runtime.files import write_json
from ..runtime.paths import CODE, CODE_ROOT


def code_files() -> list[str]:
    """The lab's files, relative to its root: what git does not ignore; without git, all but byte code."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE]
    try:
        listing = subprocess.run(command, cwd=CODE_ROOT, capture_output=True, text=True, check=True).stdout
        names = [name for name in listing.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not names:
        paths = [path for part in CODE for path in [CODE_ROOT / part, *(CODE_ROOT / part).rglob("*")]]
        names = [str(path.relative_to(CODE_ROOT)) for path in paths if "__pycache__" not in path.parts]
    return sorted(name for name in set(names) if (CODE_ROOT / name).is_file())


def snapshot_code(sweep: Path) -> str:
    """Copy the code, and the plugins that this process has loaded, to SWEEP/.code/DIGEST, once.

    Returns the digest.
    """
    sources = {name: (CODE_ROOT / name).read_bytes() for name in code_files()}
    sources |= {f"{PLUGIN_COPIES}/{plugin.sha256}.py": plugin.source for plugin in loaded_plugins()}
    hashed = hashlib.sha256()
    for name, content in sources.items():
        hashed.update(f"{name}\0".encode() + hashlib.sha256(content).digest())
    digest = hashed.hexdigest()[:12]
    final = snapshot_folder(sweep, digest)
    if not final.exists():
        partial = final.with_name(f".{digest}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name, content in sources.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        write_json(partial / provenance.GIT_SNAPSHOT, provenance.git_state())
        partial.replace(final)
    return digest


def snapshot_folder(sweep: Path, digest: str) -> Path:
    """Where a copy lies."""
    return sweep / ".code" / digest
