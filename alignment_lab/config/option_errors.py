"""Hydra's errors about the file of an option, as one sentence that names the file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException

from ..runtime.command_line import typed_override
from .groups import GROUPS
from .option_files import OPTION_GROUPS, PACKAGE_LINE, SUFFIX, chosen_file, last_read, option_file
from .validation import SpecError, did_you_mean

LACKS_SCHEMA = (
    "it lacks `defaults: [dpo, _self_]`, or another method there, which says whose settings it changes; "
    "a plugin's is [/schema/method/plugin@method, _self_]."
)
LACKS_PACKAGE = f"it lacks `{PACKAGE_LINE}` in its first line, which lets a file set other groups' keys"


def describe_option_error(error: Exception) -> str | None:
    """What is wrong with an option's file, by its name; None where the mistake is on the command line."""
    if isinstance(error, SpecError):
        return _setting_of_users_file(str(error))
    if isinstance(error, MissingConfigException):
        return _missing_default(error)
    matches = ((re.search(pattern, str(error)), describe) for pattern, describe in _DESCRIPTIONS)
    return next((sentence for match, describe in matches if match and (sentence := describe(match))), None)


def option_prefix(message: str) -> str:
    """`FILE: ` of the option that Hydra's message is about; nothing where it is about none."""
    name = re.match(r"In '([^']+)': ", message)
    return f"{option_file(name[1])}: " if name else ""


def no_such_option(missing: str, options: list[str]) -> str:
    """What there is instead of `missing`, as `method/nope`."""
    first, _, rest = missing.partition("/")
    group, _, option = (first, "/", rest) if first in OPTION_GROUPS else missing.rpartition("/")
    hint = _misplaced(group, option) or did_you_mean(option, options) or "."
    return f"{group}={option}: no such option{hint} There are: {', '.join(options)}."


def _misplaced(group: str, option: str) -> str | None:
    """Where an option's file is given in place of its name, or its folder in place of the folder above."""
    if option.endswith((SUFFIX, ".yml")) or ("/" in option and Path(option).exists()):
        return "; give its name without folder and suffix, and the folder above its group's as --config-dir."
    words = [word for argument in sys.argv[1:] for word in argument.split("=", 1)]  # --config-dir=FOLDER
    folders = [after for word, after in pairwise(words) if word in ("--config-dir", "-cd")]
    file = next((Path(folder, f"{option}{SUFFIX}") for folder in folders), None)
    if file and file.is_file():
        return (
            f"; {file} is there, and --config-dir must be the folder in which it lies as {group}/{file.name}."
        )
    return None


def _setting_of_users_file(sentence: str) -> str | None:
    """The file of the user's that sets what is refused, or that lacks what is null."""
    key, _, rest = sentence.partition("=")
    value, group = rest.partition(": ")[0], key.partition(".")[0]
    if typed_override(lambda typed: typed != group and f"{typed}=" in sentence):
        return None
    files = [file for file in last_read() if file.is_users]
    chosen = chosen_file(group) if group in OPTION_GROUPS else None
    if value == "null" and chosen in files and not any(file.sets(key) for file in files):
        return f"{chosen}: {sentence}"
    file = next((file for file in files if any(_same(value, one) for one in file.sets(key))), None)
    return f"{file}: {sentence}" if file else None


def _same(text: str, value: Any) -> bool:
    """Whether a sentence says `text` for this value of a file: 3 is 3.0 where a number is meant."""
    try:
        return float(text) == float(value)
    except (TypeError, ValueError):
        return text == str(value)


def _missing_default(error: MissingConfigException) -> str | None:
    """An option whose `defaults` name another one that does not exist."""
    missing, parent = str(error.missing_cfg_file), re.match(r"In '([^']+)': ", str(error))
    group, _, option = missing.rpartition("/")
    typed = typed_override(lambda typed: typed in (group, group.partition("/")[0]))
    if parent is None or option in typed.partition("=")[2]:
        return None
    if error.options:
        file = next((file for file in last_read() if option in file.chosen), option_file(parent[1]))
        return (
            f"{file}: its `defaults` name what is not there: {no_such_option(missing, list(error.options))}"
        )
    is_recipe = parent[1].startswith("recipe/")
    other_group = "; another group's option is chosen as `override /GROUP: OPTION`" if is_recipe else ""
    return (
        f"{option_file(parent[1])}: its `defaults` name {missing}, and there is no such option{other_group}."
    )


def _no_schema(match: re.Match[str]) -> str:
    return f"{option_file(match[1])}: {LACKS_SCHEMA}"


def _other_group(match: re.Match[str]) -> str | None:
    """An option that sets keys of other groups, and lacks the line that lets it."""
    name, key = match[1], match[2]
    group, _, setting = key.partition(".")
    if name.startswith("schema/") and key == "method.method":
        return f"{next(last_read('method'), name)}: {LACKS_PACKAGE}, as its `defaults` do with @method."
    if group != name.partition("/")[0]:
        return None
    if key == "recipe":
        return f"{option_file(name)}: {LACKS_PACKAGE}."
    if setting.partition(".")[0] in (*GROUPS, "method"):
        own = f"write its own then as `{group}: {{KEY: VALUE}}`"
        return f"{option_file(name)}: {LACKS_PACKAGE}, as it does with {setting}; {own}."
    return None


def _no_group(match: re.Match[str]) -> str:
    """A group that is set to a single value or a list, or to two methods at once."""
    name, schema, value = match[1], match[2], match[3]
    group = next((group for group, one in GROUPS.items() if one.__name__ == schema), "method")
    if name.startswith("schema/"):
        file = next((file for file in last_read("method") if len(set(file.chosen) - {"_self_"}) > 1), None)
        if file is None:
            typed = typed_override(lambda typed: typed == "method", "method")
            return f"{typed}: a run has one method; a sweep over several is --multirun method=dpo,kto."
        return f"{file}: its `defaults` build on two methods; keep one."
    return (
        f"{option_file(name)}: {group}={value}: a group has keys, as in `{group}: {{KEY: VALUE}}`; "
        f"its option is chosen under `defaults`, as `override /{group}: OPTION`."
    )


def _override_too_early(match: re.Match[str]) -> str:
    choice = f"override /{match[2]}: {match[3]}"
    return f"{option_file(match[1])}: its `defaults` have `{choice}` before others; put it at the end."


def _chosen_twice(match: re.Match[str]) -> str:
    group, option = match[1], match[2]
    typed = typed_override(lambda typed: typed == group)
    if typed.startswith("+"):
        return f"{typed}: there is a {group} already; leave the + out."
    file = next((file for file in last_read() if option in file.chosen), f"{group}={option}")
    return f"{file}: its `defaults` choose {group} anew; write `override /{group}: {option}`."


def _no_folder(match: re.Match[str]) -> str:
    return f"--config-dir {match[1]}: no such folder; give the one that holds recipe/, model/ and so on."


# Phrases of Hydra and OmegaConf; a test provokes each of them.
_DESCRIPTIONS: tuple[tuple[str, Callable[[re.Match[str]], str | None]], ...] = (
    (r"In '(method/[^']+)': ConfigKeyError[^']+Key '[^']+' not in 'Method'", _no_schema),
    (r"In '([^']+)': ConfigKeyError[\s\S]*full_key: (\S+)", _other_group),
    (r"In '([^']+)': ValidationError[\s\S]* is not a subclass of (\w+)\.\s+value: (.*)", _no_group),
    (r"In (\S+): Override '(\S+) : (\S+)' is defined before", _override_too_early),
    (r"Multiple values for (\S+)\. To override a value use 'override \S+: ([^']+)'", _chosen_twice),
    (r"Additional config directory '(.+)' not found", _no_folder),
)
