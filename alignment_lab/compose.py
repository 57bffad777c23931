"""Hydra's door: where the options lie, how a sweep's cells are named, and Hydra's errors as one sentence.

Imports neither torch nor transformers, so that a mistake is answered within a second.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .artifacts import RunDirectory
from .errors import UserError
from .spec import Experiment, keys, parse, register

CONF = Path(__file__).resolve().parents[1] / "conf"
TRACEBACK_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1"
FOLDER_NAME_LIMIT = 120  # characters; most file systems take 255 bytes


class ConfSearchPath(SearchPathPlugin):
    """Lets a run's own spec.yaml (`--config-path RUN --config-name spec`) find the options in conf/ as well."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append conf/, behind whatever the command line named."""
        search_path.append(provider="alignment_lab", path=f"file://{CONF}")


def prepare() -> None:
    """Tell Hydra of the schemas, of conf/ and of how cells are named. Safe to call twice."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands us its errors, instead of printing a paragraph and exiting with 1
    register()
    Plugins.instance().register(ConfSearchPath)
    OmegaConf.register_new_resolver("cell", folder_name, replace=True)


def folder_name(overrides: str) -> str:
    """A sweep cell's overrides as a folder name: no separators, short, and distinct where they are distinct."""
    name = re.sub(r"[^\w.,=+-]+", "_", overrides) or "defaults"
    if name == overrides and len(name) <= FOLDER_NAME_LIMIT:
        return name
    return f"{name[:FOLDER_NAME_LIMIT]}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"


def experiment(overrides: list[str], config_name: str = "config") -> Experiment:
    """Compose and check one experiment; needs an initialised Hydra, as inside `@hydra.main`."""
    return parse(compose(config_name, overrides))


@contextmanager
def one_sentence(discard: RunDirectory | None = None) -> Iterator[None]:
    """Turn a user's mistake into one sentence and exit code 2, and remove the run directory in which nothing came about.

    HYDRA_FULL_ERROR=1 gives the traceback instead.
    """
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if discard:
            discard.discard()
        if TRACEBACK_WANTED:
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)


def explain(error: Exception) -> str:
    """One sentence for what Hydra, OmegaConf or the lab raised: the key, the value, the nearest real one, the remedy."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _no_such_option(str(error.missing_cfg_file), list(error.options))
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as KEY=VALUE; quote special characters, as in 'key=\"a, b\"'."
    if isinstance(error, MissingConfigException):
        return f"{' '.join(str(error).partition('. ')[0].split())}; python train.py --help says what there is."
    cause = str(error.__cause__ or error).splitlines()[0]
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, str(error)):
            return sentence(found[1], cause)
    return " ".join(str(error).split())


def _no_such_option(file: str, options: list[str]) -> str:
    group, _, option = file.rpartition("/")
    return f"{group}={option}: no such option{_nearest(option, options) or '.'} There are: {', '.join(options)}."


def _no_such_key(key: str, cause: str) -> str:
    known = keys()
    group, _, name = key.rpartition(".")
    inside = [full for full in known if full.rpartition(".")[0] == group]
    same_name = [full for full in known if full.rpartition(".")[2] == name]
    hint = f"; did you mean {' or '.join(same_name)}?" if same_name else _nearest(key, inside)
    if not hint and group in known:
        hint = f"; {group} has {', '.join(full.rpartition('.')[2] for full in inside)}."
    return f"{_as_written(key)}: no such key{hint or '; python train.py --cfg job lists them all.'}"


def _wrong_value(override: str, cause: str) -> str:
    """OmegaConf says what it cannot do with the value; what follows is the kind that it wants."""
    if "support deletion" in cause:
        return f"{override}: this key cannot be taken away; set it instead."
    wanted = re.search(r"(?:converted to|not a valid) (\w+)|expected one of (\[.*\])|is not (a ListConfig|Optional)", cause)
    if wanted is None:
        return f"{override}: {cause}"
    kind = _KINDS.get(wanted[1] or wanted[3])
    return f"{override}: give {kind}." if kind else f"{override}: give one of {wanted[2]}{_nearest_choice(override, wanted[2])}"


_KINDS = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "a ListConfig": "a list, as in [a,b]",
    "Optional": "a value: null is not one here",
}


def _nearest_choice(override: str, choices: str | None) -> str:
    return _nearest(override.partition("=")[2], (choices or "")[1:-1].split(", ")) or "."


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _as_written(key: str) -> str:
    """The key with the value that the user gave it on the command line."""
    words = [word.lstrip("+~") for word in sys.argv[1:]]
    return next((word for word in words if word.partition("=")[0] == key), key)


# The phrases of Hydra and OmegaConf; a test provokes each of them.
_SENTENCES = (
    (r"Could not (?:override|append|delete)[^']*'([^']+)'", _no_such_key),
    (r"Key '[^']+' not in '\w+'\s+full_key: (\S+)", _no_such_key),
    (r"Error merging override (.*)", _wrong_value),
)
