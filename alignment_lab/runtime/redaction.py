"""The secrets of this process, and text without them.

A secret is known by its name (an environment variable, a key of the command line, the Hub's token, a password of .netrc), by its value,
wherever that is found again, and by its look, where a service marks what it hands out. Refuses to know what is written where; imports
nothing of the lab, and nothing that takes time.
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
SHORTEST = 8  # characters of a value that is looked for: a shorter one is found everywhere
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
PLACE_WORDS = {"PATH", "FILE", "DIR", "HOME"}  # HF_TOKEN_PATH says where one lies
TOKENIZER_WORDS = {"BOS", "EOS", "PAD", "UNK", "SEP", "CLS", "MASK"}  # their tokens are no secrets

_MARK = r"\*\*\*(?:\w+\*\*\*)?"
_HARMLESS = re.compile(
    rf"|true|false|yes|no|on|off|none|null|[-+]?\d{{1,6}}(\.\d+)*|\$\{{.*\}}|\?\?\?|{_MARK}", re.IGNORECASE
)
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"  # of a word, also behind what JSON or a URL wrote in another way
_LOOKS = re.compile(
    rf"{_START}(?:hf_[A-Za-z0-9]{{20,}}|sk-(?=[\w-]*\d)[\w-]{{20,}}|gh[pousr]_[A-Za-z0-9]{{30,}}|github_pat_\w{{22,}}|A[KS]IA[A-Z0-9]{{16}}"
    r"|glpat-[\w-]{20,}|xox[a-z]-[\w-]{10,}|wandb_v\d_\w{20,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",  # the user and the password of a URL
    re.DOTALL,
)
_HEX = re.compile(
    r"((?:key|token|secret|passw(?:or)?d|credentials?)['\"]?\W{1,4})[0-9a-f]{40}\b", re.IGNORECASE
)  # else it is a commit
_VALUE = r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'%s]+)"
_ASSIGNED = re.compile(r"(?P<before>(?<![A-Za-z0-9_])(?P<name>[A-Z][A-Z0-9_]*)=)" + _VALUE % "")
_MAPPED = re.compile(r"(?P<before>[{,\"']\s*(?P<name>[A-Za-z][\w-]*)[\"']?\s*:\s*)" + _VALUE % r",}\]")
_WORD = re.compile(
    r"(?P<before>[+~]*(?:[\w/@-]+\.)*(?P<name>[\w-]+)=)(?P<value>[^\n]*)"
)  # of a command, nothing before it

_seen: dict[
    str, str
] = {}  # value to name: what Hydra puts into the environment for a job is gone when its error is told


def redact(text: str) -> str:
    """The text with every secret replaced by ***NAME***, or by *** where it has no name. The same text where there is none."""
    return _cleaner()(text)


def redacted(plain: Any) -> Any:
    """Dictionaries, lists and strings with every secret replaced; a key stays, and its value goes where the key is a secret's name."""
    clean = _cleaner()

    def walk(value: Any, name: str = "") -> Any:
        if isinstance(value, str):
            value = clean(value)
            return HIDDEN if is_secret_name(name) and not is_harmless(value) else value
        if isinstance(value, dict):
            return {key: walk(inner, str(key)) for key, inner in value.items()}
        return [walk(inner, name) for inner in value] if isinstance(value, list | tuple) else value

    return walk(plain)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a variable or key of this name holds a secret: MY_API_KEY does, max_new_tokens and HF_TOKEN_PATH do not."""
    words = re.split(r"[^A-Z0-9]+", name.upper())
    return (
        bool(SECRET_WORDS & set(words)) and words[-1] not in PLACE_WORDS and not TOKENIZER_WORDS & set(words)
    )


def is_harmless(value: str) -> bool:
    """Whether a value gives nothing away under whatever name: a yes or no, a short number, a reference, a place on this machine."""
    return bool(_HARMLESS.fullmatch(value)) or _is_place(value)


def redacting_excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """For sys.excepthook: the traceback as Python prints it, without secrets."""
    from traceback import format_exception

    print(redact("".join(format_exception(kind, error, trace))), end="", file=sys.stderr)


def _is_place(value: str) -> bool:
    if value.startswith(("~/", "./", "../")):
        return True
    first = re.match(
        r"/[^/]+", value
    )  # base64 may begin with a slash; no folder of the root is called as it goes on
    return os.path.exists(first[0]) if first else "/" in value and os.path.exists(value)


# ---- which secrets there are


def _known() -> dict[str, str]:
    """Every secret that this process has met, value to name."""
    for name, value in (*sorted(os.environ.items()), *_of_command(), *_of_files()):
        if is_secret_name(name):
            for part in _parts(value):
                _seen.setdefault(part, name)
    return _seen


def _parts(value: str) -> Iterator[str]:
    """The value, and of several lines each that could be part of a key."""
    lines = [line for line in value.split() if len(line) >= 2 * SHORTEST] if "\n" in value.strip() else []
    yield from (part for part in (value.strip(), *lines) if len(part) >= SHORTEST and not is_harmless(part))


def _of_command() -> Iterator[tuple[str, str]]:
    """What the command line sets under a secret's name."""
    for word in sys.argv[1:]:
        for found in (_WORD.fullmatch(word), *_MAPPED.finditer(word)):
            if found:
                yield found["name"], found["value"].strip("\"'")


def _of_files() -> Iterator[tuple[str, str]]:
    """The token that `hf auth login` left, and the passwords of .netrc, where `wandb login` leaves its own."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    yield "HF_TOKEN", _token(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))
    for path in filter(
        None, (os.environ.get("NETRC"), os.path.expanduser("~/.netrc"), os.path.expanduser("~/_netrc"))
    ):
        yield from _passwords(path)


@lru_cache
def _token(path: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read(10_000)
    except (OSError, UnicodeDecodeError):
        return ""


@lru_cache
def _passwords(path: str) -> tuple[tuple[str, str], ...]:
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return ()
    return tuple(
        ("WANDB_API_KEY" if "wandb" in host else "NETRC_PASSWORD", entry[2] or "")
        for host, entry in hosts.items()
    )


# ---- how they are replaced


def _cleaner() -> Callable[[str], str]:
    """What replaces the secrets that are known now."""
    secrets, words = tuple(_known().items()), tuple(sys.argv[1:])
    pattern, names = _values(secrets, words)

    def clean(text: str) -> str:
        text = pattern.sub(lambda found: names.get(found[0], found[0]), text) if pattern else text
        return _by_look(_by_key(text if re.search(r"\s", text) else _of_word(text)))

    return clean


@lru_cache(maxsize=8)
def _values(
    secrets: tuple[tuple[str, str], ...], words: tuple[str, ...]
) -> tuple[re.Pattern[str] | None, dict[str, str]]:
    """One pattern for all values in all their spellings, the longest first, and what each becomes.

    A mark that is there already stays as it is: a name might be somebody's password. So do words of the command, a short secret in them.
    """
    into = {form: f"{HIDDEN}{name}{HIDDEN}" for value, name in secrets for form in _spellings(value)}
    marks = {mark: mark for mark in into.values()}
    hidden = {
        word: clean
        for word in words
        if (clean := _of_word(word)) != word and not any(value in word for value, _ in secrets)
    }
    names = {**into, **hidden, **marks}
    return (
        (re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))), names)
        if names
        else (None, {})
    )


def _spellings(value: str) -> set[str]:
    """The value as it is, as a URL, JSON, and Python write it."""
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, quote(value), quote(value, safe=""), quote_plus(value), *escaped}


def _of_word(text: str) -> str:
    """`+a.b.MY_API_KEY=...`: a text that is one word of a command loses all behind the =; in `a={HF_TOKEN:...}`, what stands there."""
    word = _WORD.fullmatch(text)
    if word is None:
        return text
    return _hidden(word) if is_secret_name(word["name"]) else _MAPPED.sub(_hidden, text)


def _by_key(text: str) -> str:
    """MY_API_KEY=... and {"MY_API_KEY": ...} in any text. In capitals alone: `token=token` is code, and a diff should stay one."""
    for pattern in (_ASSIGNED, _MAPPED):
        text = pattern.sub(lambda found: _hidden(found) if found["name"].isupper() else found[0], text)
    return text


def _hidden(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    if name.upper() == "KEY" or not is_secret_name(name) or is_harmless(value.strip("\"'").rstrip(",;.)")):
        return found[0]  # `key=value` is how we speak of settings
    around = value[0] if value[0] in "\"'" else ""
    return f"{found['before']}{around}{HIDDEN}{around}"


def _by_look(text: str) -> str:
    return _HEX.sub(rf"\1{HIDDEN}", _LOOKS.sub(HIDDEN, text))
