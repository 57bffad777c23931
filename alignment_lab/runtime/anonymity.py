"""Takes what names this machine and whoever works on it out of text that leaves it.

Paths keep their last part, `PATH/rows.jsonl`; the names of the user and of the host are replaced, and
secrets as everywhere. Refuses to know what the text is for; imports nothing slow.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .paths import CODE_ROOT
from .redaction import HIDDEN, redact

PLACE = "PATH"  # stands for every folder of this machine
MIN_NAME = 3  # characters of a user's or a host's name that is searched for
EVERYDAY = {  # names of users and hosts that say nothing of anybody, and are words of many texts
    "admin", "azureuser", "centos", "debian", "docker", "ec2-user", "home", "jovyan", "localhost", "nobody",
    "root", "runner", "test", "ubuntu", "user", "users", "vscode", "work",
}  # fmt: skip
USER_VARIABLES = ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER")

_END = r"\s\"'`,;|()\[\]{}<>"  # characters that end a path in a text
_ABSOLUTE = re.compile(  # at the start of a word; not the slashes of a URL, of a fraction or of `</s>`
    rf"(?<![^\s\"'`,;|(\[{{=:])(?:file://)?(?:~[\w.-]*)?/(?![/\s])[^{_END}]*"
)
_BELOW_PLACE = re.compile(rf"{PLACE}/[^{_END}]*")
_ONE_PATH = re.compile(
    r"(?P<key>[\w.@+~/-]*=)?(?P<path>[/~][^\n,;=\[\]{}]*)"
)  # all of a value; spaces are part of it


def anonymize(text: str, *, keep: Iterable[str] = (), places: Iterable[str | Path] = ()) -> str:
    """The text without paths of this machine, the user's and the host's names, and secrets.

    `keep`: names that stay, whatever is in them, such as those of repositories. `places`: folders and files
    of this machine that are known to be named in it, for paths with spaces.
    """
    kept = sorted(filter(None, keep), key=len, reverse=True)
    if not kept:
        return _anonymize(text, places)
    parts = re.split(f"({'|'.join(map(re.escape, kept))})", text)
    return "".join(part if part in kept else _anonymize(part, places) for part in parts)


def anonymize_data(data: Any, **options: Any) -> Any:
    """Dictionaries, lists and strings with every string anonymized; keys stay."""
    if isinstance(data, str):
        return anonymize(data, **options)
    if isinstance(data, dict):
        return {key: anonymize_data(value, **options) for key, value in data.items()}
    return [anonymize_data(value, **options) for value in data] if isinstance(data, list | tuple) else data


def _anonymize(text: str, places: Iterable[str | Path]) -> str:
    text = redact(text)
    whole = _ONE_PATH.fullmatch(text)
    if whole and " /" not in text and len(whole["path"].strip("/~")) > 0:
        text = f"{whole['key'] or ''}{_last_part(whole['path'])}"
    else:
        for place in _known_places(places):
            text = re.sub(rf"{re.escape(place)}(?=/|[^\w.-]|$)", _named(place), text)
        text = _ABSOLUTE.sub(lambda match: _last_part(match[0]), text)
        text = _BELOW_PLACE.sub(lambda match: _last_part(match[0]), text)
    return _mask_names(text)


def _last_part(path: str) -> str:
    """`PATH/rows.jsonl`, of a path whose end may be punctuation of the sentence."""
    name = path.rstrip("/").rpartition("/")[2]
    return f"{PLACE}/{name}" if name and not name.startswith("~") else PLACE


def _named(place: str) -> Callable[[re.Match[str]], str]:
    """The replacement of a known place: a home directory's own name is that of its user."""
    replacement = PLACE if place == _home() else f"{PLACE}/{Path(place).name}"
    return lambda match: replacement


def _known_places(places: Iterable[str | Path]) -> list[str]:
    """Folders of this machine, the longest first."""
    own = (_home(), os.getcwd(), CODE_ROOT, sys.prefix, tempfile.gettempdir())
    named = {os.path.abspath(str(place)) for place in (*own, *places) if str(place)}
    return sorted((place for place in named if place.count("/") and place != "/"), key=len, reverse=True)


def _home() -> str:
    return os.path.expanduser("~")


def _mask_names(text: str) -> str:
    for name in sorted(set(_names()), key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", HIDDEN, text)
    return text


def _names() -> Iterator[str]:
    """The names of the user and of the host, without those that are words of many texts."""
    host = platform.node()
    found = (*map(os.environ.get, USER_VARIABLES), Path(_home()).name, host, host.partition(".")[0])
    yield from (name for name in found if name and len(name) >= MIN_NAME and name.lower() not in EVERYDAY)
