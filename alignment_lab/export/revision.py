"""The branch of a repository that a cell of a sweep is uploaded to."""

from __future__ import annotations

import re

from ..runtime.anonymity import anonymize
from ..runtime.run_directory import RunDirectory
from ..tracking.forwarder import containing_sweep

MAX_LENGTH = 200  # characters


def cell_revision(run: RunDirectory) -> str | None:
    """A branch named as the cell's folder; None where the run is no cell of a sweep."""
    if containing_sweep(run) is None:
        return None
    name = anonymize(run.path.absolute().name)
    name = re.sub(r"[^\w.=,+-]+|\.\.+", "-", name, flags=re.ASCII)[:MAX_LENGTH].strip(".-")
    return name.removesuffix(".lock") or None
