"""A method of a user's own for tests: the one of docs/guides/extending.md, with tilt=0 DPO."""

from __future__ import annotations

from pathlib import Path

from small_guides import files_of

FILES = files_of("extending.md")
PLUGIN, OPTION = FILES["tilted.py"], FILES["options/method/tilted.yaml"]


def write_plugin(folder: Path, source: str = PLUGIN) -> Path:
    """tilted.py and options/method/tilted.yaml in this folder, which is to be the working directory."""
    (folder / "options" / "method").mkdir(parents=True, exist_ok=True)
    (folder / "options" / "method" / "tilted.yaml").write_text(OPTION)
    (folder / "tilted.py").write_text(source)
    return folder / "tilted.py"
