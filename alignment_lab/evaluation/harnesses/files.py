"""Files that other packages read and write: rows in, with the setting that named the file in every error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

from ...runtime.errors import UserError


def matching(value: str) -> list[Path]:
    """The file of this name, or those of a pattern with `*`; a pattern that matches nothing is itself."""
    path = Path(value).expanduser()
    found = sorted(map(Path, glob(str(path)))) if "*" in value and not path.exists() else []
    return found or [path]


def read_objects(key: str, value: str, *fields: str) -> list[dict[str, Any]]:
    """The objects of a JSON array or of JSON Lines, in order; of every file that a pattern matches.

    Raises UserError with `key=value` where there is no such file, it holds anything else, or an object lacks
    one of `fields`.
    """
    return [row for path in matching(value) for row in _read_file(key, path, fields)]


def _read_file(key: str, path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(f"{key}={path}: it cannot be read ({reason}); give a JSON or JSONL file.") from None
    rows = _parse(key, path, text)
    if not rows:
        raise UserError(f"{key}={path}: it has no rows; give a file that has some.")
    for number, row in enumerate(rows, 1):
        lacking = [field for field in fields if not isinstance(row, dict) or field not in row]
        if lacking:
            raise UserError(
                f"{key}={path}: row {number} has no `{lacking[0]}`; give a file whose rows have it."
            )
    return rows


def _parse(key: str, path: Path, text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        parts = [(0, text)]
    else:  # not splitlines(), which also splits at U+2028
        parts = [(number, line) for number, line in enumerate(text.split("\n")) if line.strip()]
    parsed = []
    for lines_before, part in parts:
        try:
            parsed.append(json.loads(part))
        except json.JSONDecodeError as error:
            line = lines_before + error.lineno
            raise UserError(f"{key}={path}: line {line} is no JSON ({error.msg}); correct it.") from None
    return parsed[0] if text.lstrip().startswith("[") else parsed


def model_id(name: str) -> str:
    """A model in files and judgments of other programs, which make file names of it: the last parts of a path
    or a Hub id, `RUN-checkpoints-step-8`.
    """
    parts = [part for part in Path(name).parts if part.strip("/.")]
    is_checkpoint = len(parts) > 2 and parts[-2] == "checkpoints"
    label = "-".join(parts[-3:] if is_checkpoint else parts[-1:])
    return "".join(each if each.isalnum() or each in "-._" else "_" for each in label) or "model"


def to_json(value: Any) -> str:
    """Indented."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def to_jsonl(rows: list[dict[str, Any]]) -> str:
    """One line for each object."""
    return "".join(json.dumps(row) + "\n" for row in rows)
