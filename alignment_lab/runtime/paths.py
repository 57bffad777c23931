"""Where the lab's own files lie: in a clone, in an installed package, or in the copy of the code that a sweep keeps."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CODE_ROOT = PACKAGE.parent  # put on PYTHONPATH, it makes `import alignment_lab` find this code
CONF = (
    PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else CODE_ROOT / "conf"
)  # a wheel carries conf/ inside the package
CHAT_TEMPLATES = PACKAGE / "config" / "chat_templates"
