"""A method of a user's own for tests: the one of docs/guides/extending.md, with tilt=0 DPO."""

from __future__ import annotations

from pathlib import Path

from small_guides import files_of

# The shortest run that does everything a run does
SHORT = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=2",
    "training.global_batch=2",
    "eval.rows=2",
    "eval.generations=1",
    "eval.max_new_tokens=2",
    "tracking=local",
]

FILES = files_of("extending.md")
PLUGIN, OPTION = FILES["tilted.py"], FILES["options/method/tilted.yaml"]


def write_plugin(folder: Path, source: str = PLUGIN) -> Path:
    """tilted.py and options/method/tilted.yaml in this folder, which is to be the working directory."""
    (folder / "options" / "method").mkdir(parents=True, exist_ok=True)
    (folder / "options" / "method" / "tilted.yaml").write_text(OPTION)
    (folder / "tilted.py").write_text(source)
    return folder / "tilted.py"
