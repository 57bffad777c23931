"""Finds the secrets of this process and removes them from text.

A secret is recognized by its name (an environment variable, a key of the command line, the Hub's token, a
password of .netrc), by its value wherever that occurs again, and by its format where a service has one.
Refuses to know what is written where; imports nothing of the lab, and nothing slow.
"""

from __future__ import annotations

import json
import netrc
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "***"
MIN_LENGTH = 8  # characters of a value that is searched for: a shorter one would match everywhere
SECRET_WORDS = {
    "TOKEN",
    "KEY",
    "APIKEY",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
}
PATH_WORDS = {"PATH", "FILE", "DIR", "HOME"}  # HF_TOKEN_PATH is the path of a secret
TOKENIZER_WORDS = {"BOS", "EOS", "PAD", "UNK", "SEP", "CLS", "MASK"}  # their tokens are not secrets

_MARK = r"\*\*\*(?:\w+\*\*\*)?"
_HARMLESS = re.compile(
    rf"|true|false|yes|no|on|off|none|null|[-+]?\d{{1,6}}(\.\d+)*|\$\{{.*\}}|\?\?\?|{_MARK}", re.IGNORECASE
)
# the start of a word, also behind an escape of JSON or of a URL
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_KNOWN_FORMATS = re.compile(
    rf"{_START}(?:hf_[A-Za-z0-9]{{20,}}|sk-(?=[\w-]*\d)[\w-]{{20,}}|gh[pousr]_[A-Za-z0-9]{{30,}}"
    r"|github_pat_\w{22,}|A[KS]IA[A-Z0-9]{16}|glpat-[\w-]{20,}|xox[a-z]-[\w-]{10,}|wandb_v\d_\w{20,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",  # the user and the password of a URL
    re.DOTALL,
)
_HEX_KEY = re.compile(  # 40 hex digits beside a secret's name; elsewhere they are a commit
    r"((?:key|token|secret|passw(?:or)?d|credentials?)['\"]?\W{1,4})[0-9a-f]{40}\b", re.IGNORECASE
)
_VALUE = r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'%s]+)"
_ASSIGNMENT = re.compile(r"(?P<before>(?<![A-Za-z0-9_])(?P<name>[A-Z][A-Z0-9_]*)=)" + _VALUE % "")
_MAPPING_ENTRY = re.compile(r"(?P<before>[{,\"']\s*(?P<name>[A-Za-z][\w-]*)[\"']?\s*:\s*)" + _VALUE % r",}\]")
_OVERRIDE = re.compile(  # a whole argument of a command
    r"(?P<before>[+~]*(?:[\w/@-]+\.)*(?P<name>[\w-]+)=)(?P<value>[^\n]*)"
)

# value -> name of every secret found so far: what Hydra sets in a job's environment is gone when its error is
# printed
_seen: dict[str, str] = {}


def redact(text: str) -> str:
    """The text with every secret replaced by ***NAME***, or by *** where it has no name."""
    return _make_redactor()(text)


def redact_data(data: Any) -> Any:
    """Dictionaries, lists and strings with every secret replaced.

    Keys stay; the value under a secret's name is replaced.
    """
    redact_text = _make_redactor()

    def walk(value: Any, name: str = "") -> Any:
        if isinstance(value, str):
            value = redact_text(value)
            return HIDDEN if is_secret_name(name) and not is_harmless(value) else value
        if isinstance(value, dict):
            return {key: walk(inner, str(key)) for key, inner in value.items()}
        return [walk(inner, name) for inner in value] if isinstance(value, list | tuple) else value

    return walk(data)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a value under this name is secret: MY_API_KEY is, max_new_tokens and HF_TOKEN_PATH are not."""
    words = re.split(r"[^A-Z0-9]+", name.upper())
    return (
        bool(SECRET_WORDS & set(words)) and words[-1] not in PATH_WORDS and not TOKENIZER_WORDS & set(words)
    )


def is_harmless(value: str) -> bool:
    """Whether a value is never a secret: a boolean, a short number, a reference, a path on this machine."""
    return bool(_HARMLESS.fullmatch(value)) or _is_path(value)


def redacting_excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """For sys.excepthook: print the traceback as Python does, without secrets."""
    from traceback import format_exception

    print(redact("".join(format_exception(kind, error, trace))), end="", file=sys.stderr)


def _is_path(value: str) -> bool:
    if value.startswith(("~/", "./", "../")):
        return True
    # base64 may begin with a slash, but its first segment is no folder of the root
    root_folder = re.match(r"/[^/]+", value)
    return os.path.exists(root_folder[0]) if root_folder else "/" in value and os.path.exists(value)


# ---- finding secrets


def _find_secrets() -> dict[str, str]:
    """Every secret that this process has had so far: value -> name."""
    for name, value in (*sorted(os.environ.items()), *_from_command_line(), *_from_files()):
        if is_secret_name(name):
            for part in _searchable_parts(value):
                _seen.setdefault(part, name)
    return _seen


def _searchable_parts(value: str) -> Iterator[str]:
    """The value, and each of its lines that is long enough to be part of a key."""
    lines = [line for line in value.split() if len(line) >= 2 * MIN_LENGTH] if "\n" in value.strip() else []
    yield from (part for part in (value.strip(), *lines) if len(part) >= MIN_LENGTH and not is_harmless(part))


def _from_command_line() -> Iterator[tuple[str, str]]:
    """(name, value) of everything that the command line sets."""
    for argument in sys.argv[1:]:
        for match in (_OVERRIDE.fullmatch(argument), *_MAPPING_ENTRY.finditer(argument)):
            if match:
                yield match["name"], match["value"].strip("\"'")


def _from_files() -> Iterator[tuple[str, str]]:
    """The token of `hf auth login`, and the passwords of .netrc, where `wandb login` saves its key."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    yield "HF_TOKEN", _read_token_file(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))
    paths = (os.environ.get("NETRC"), os.path.expanduser("~/.netrc"), os.path.expanduser("~/_netrc"))
    for path in filter(None, paths):
        yield from _read_netrc(path)


@lru_cache
def _read_token_file(path: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read(10_000)
    except (OSError, UnicodeDecodeError):
        return ""


@lru_cache
def _read_netrc(path: str) -> tuple[tuple[str, str], ...]:
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return ()
    return tuple(
        ("WANDB_API_KEY" if "wandb" in host else "NETRC_PASSWORD", entry[2] or "")
        for host, entry in hosts.items()
    )


# ---- replacing them


def _make_redactor() -> Callable[[str], str]:
    """A function that replaces the secrets that are known now."""
    secrets, arguments = tuple(_find_secrets().items()), tuple(sys.argv[1:])
    pattern, replacements = _compile_replacements(secrets, arguments)

    def redact_text(text: str) -> str:
        if pattern:
            text = pattern.sub(lambda match: replacements.get(match[0], match[0]), text)
        text = text if re.search(r"\s", text) else _redact_argument(text)
        return _redact_known_formats(_redact_assignments(text))

    return redact_text


@lru_cache(maxsize=8)
def _compile_replacements(
    secrets: tuple[tuple[str, str], ...], arguments: tuple[str, ...]
) -> tuple[re.Pattern[str] | None, dict[str, str]]:
    """One pattern for all values in all their encodings, longest first, and the replacement of each match.

    A mark that is there already is matched and kept: the name in it might be somebody's password. Arguments
    of the command that hold a short secret are matched as a whole.
    """
    by_value = {form: f"{HIDDEN}{name}{HIDDEN}" for value, name in secrets for form in _encodings(value)}
    marks = {mark: mark for mark in by_value.values()}
    by_argument = {
        argument: redacted
        for argument in arguments
        if (redacted := _redact_argument(argument)) != argument
        and not any(value in argument for value, _ in secrets)
    }
    replacements = {**by_value, **by_argument, **marks}
    if not replacements:
        return None, {}
    longest_first = sorted(replacements, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))), replacements


def _encodings(value: str) -> set[str]:
    """The value as it is, and as a URL, JSON and Python write it."""
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, quote(value), quote(value, safe=""), quote_plus(value), *escaped}


def _redact_argument(text: str) -> str:
    """Redact one argument of a command.

    All behind the = of `+a.b.MY_API_KEY=...`; in `a={HF_TOKEN:...}` the value of the entry.
    """
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        return text
    return _mask_value(match) if is_secret_name(match["name"]) else _MAPPING_ENTRY.sub(_mask_value, text)


def _redact_assignments(text: str) -> str:
    """Redact MY_API_KEY=... and {"MY_API_KEY": ...} in any text.

    Upper-case names only: `token=token` is code, and a diff of code should stay readable.
    """
    for pattern in (_ASSIGNMENT, _MAPPING_ENTRY):
        text = pattern.sub(lambda match: _mask_value(match) if match["name"].isupper() else match[0], text)
    return text


def _mask_value(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    # `key=value` is how error messages speak of settings
    if name.upper() == "KEY" or not is_secret_name(name) or is_harmless(value.strip("\"'").rstrip(",;.)")):
        return match[0]
    quotes = value[0] if value[0] in "\"'" else ""
    return f"{match['before']}{quotes}{HIDDEN}{quotes}"


def _redact_known_formats(text: str) -> str:
    return _HEX_KEY.sub(rf"\1{HIDDEN}", _KNOWN_FORMATS.sub(HIDDEN, text))
