"""Names of what is uploaded: a file of an experiment, and the branch of a sweep's cell."""

from __future__ import annotations

import re

from ..runtime.anonymity import anonymize
from ..runtime.run_directory import RunDirectory
from ..tracking.forwarder import containing_sweep

MAX_LENGTH = 200  # characters


def file_name(name: str) -> str:
    """An experiment's name as part of a file's name, and as a repository's."""
    return re.sub(r"[^\w.=+-]+", "-", name, flags=re.ASCII).strip("-.") or "model"


def cell_revision(run: RunDirectory) -> str | None:
    """A branch named as the cell's folder; None where the run is no cell of a sweep."""
    if containing_sweep(run) is None:
        return None
    name = anonymize(run.path.absolute().name)
    name = re.sub(r"[^\w.=,+-]+|\.\.+", "-", name, flags=re.ASCII)[:MAX_LENGTH].strip(".-")
    return name.removesuffix(".lock") or None
