"""Where the lab's own files are: in a clone, an installed package, or the code copy of a sweep."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CODE_ROOT = PACKAGE.parent  # put on PYTHONPATH, it makes `import alignment_lab` find this code
INSTALLED = (PACKAGE / "conf").is_dir()  # a wheel carries conf/ inside the package: see setup.py
CONF = PACKAGE / "conf" if INSTALLED else CODE_ROOT / "conf"
CHAT_TEMPLATES = PACKAGE / "config" / "chat_templates"
# the lab's part of CODE_ROOT
CODE = ("alignment_lab",) if INSTALLED else ("alignment_lab", "conf", "train.py")


def pythonpath() -> str:
    """PYTHONPATH for a child process that must import this code.

    An installed package is found without: its site-packages, put first, would hide modules of the standard
    library.
    """
    own = [] if INSTALLED else [str(CODE_ROOT)]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
