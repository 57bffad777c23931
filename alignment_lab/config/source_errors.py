"""Hydra's errors about the sources of a mixture, as one sentence that says how a source is written."""

from __future__ import annotations

import re
import sys
from dataclasses import fields

from hydra.errors import MissingConfigException

from ..runtime.command_line import typed_override
from .groups import Source
from .option_errors import option_prefix
from .option_files import SOURCE_GROUP
from .validation import did_you_mean

SETTINGS = [field.name for field in fields(Source)]
MAPPINGS = ("columns", "filter")  # whose entries have names of their own
ADD = "+data/source@data.sources.{name}={option}"
_KEY = re.compile(
    r"(?:full_key: |'\+?|override [+~]?)(data\.sources)(?:\.([^.=\s']+)(?:\.([^.=\s']+))?)?(?![\w/])"
)


def describe_source_error(error: Exception) -> str | None:
    """What is wrong with how a source was added, changed or removed; None where the error is another one."""
    return _misplaced_source() or _unknown_option(error) or _unknown_key(error)


def _misplaced_source() -> str | None:
    """A source of a mixture that is given without its name there, or as the data."""
    for word in sys.argv[1:]:
        key, _, option = word.lstrip("+~").partition("=")
        group, _, package = key.partition("@")
        if group == SOURCE_GROUP and not re.fullmatch(r"data\.sources\.[^.]+", package):
            return (
                f"{word}: say its name in the mixture: {ADD.format(name='NAME', option=option or 'OPTION')}."
            )
        if key == "data" and option.startswith("source/"):
            name = option.removeprefix("source/")
            return f"{word}: it is a mixture's source: data=mixture {ADD.format(name=name, option=name)}."
    return None


def _unknown_option(error: Exception) -> str | None:
    missing = str(getattr(error, "missing_cfg_file", ""))
    if not isinstance(error, MissingConfigException) or not missing.startswith(f"{SOURCE_GROUP}/"):
        return None
    option, options = missing.removeprefix(f"{SOURCE_GROUP}/"), list(error.options or ())
    typed = typed_override(lambda key: key.startswith(f"{SOURCE_GROUP}@"), f"{SOURCE_GROUP}={option}")
    hint = did_you_mean(option, options) or "."
    return f"{typed}: no such option{hint} There are: {', '.join(options)}."


def _unknown_key(error: Exception) -> str | None:
    """A source that is not there, or a setting that sources do not have."""
    message = f"{error} {error.__cause__ or ''}"
    if place := re.search(r"Could not (override|delete)[^']*'data/source@data\.sources\.([^']+)'", message):
        key = f"{SOURCE_GROUP}@data.sources.{place[2]}"
        hints = {"override": "write a + in front to add it", "delete": f"there is no source {place[2]}"}
        return f"{typed_override(lambda word: word == key, key)}: {hints[place[1]]}."
    found = _KEY.search(message)
    if found is None:
        return None
    key, (name, setting) = ".".join(filter(None, found.groups())), found.groups()[1:]
    typed = option_prefix(str(error)) + typed_override(lambda word: word == key, key)
    if setting and setting not in SETTINGS:
        nearest = did_you_mean(setting, SETTINGS) or f"; it has {', '.join(SETTINGS)}."
        return f"{typed}: a source has no such setting{nearest}"
    names = re.findall(r"data/source@data\.sources\.([^\s=]+)", " ".join(sys.argv[1:]))
    if "Could not delete" in message and setting and name in names:
        word = typed_override(lambda word: word.startswith(key), key)
        return f"{word}: nothing is there that could be removed; leave it out."
    if "Could not delete" in message:
        return f"{typed}: the mixture has no source {name}{did_you_mean(str(name), names) or '.'}"
    if setting in MAPPINGS and f"full_key: {key}." in message:  # the source is there, the entry is not
        word = typed_override(lambda word: word == key or word.startswith(f"{key}."), key)
        return f"{word}: what is new in {setting} takes a + in front: write +{word}."
    if setting and name in names and f"full_key: data.sources.{name}\n" in message:
        return f"{typed}: a ~ before it leaves the source {name} out; leave out this, or the ~."
    if setting and "Could not override" in message:
        remedy = did_you_mean(str(name), names) or f"; add it: {ADD.format(name=name, option='OPTION')}."
        return f"{typed}: the mixture has no source {name}{remedy}"
    if not setting or "not a subclass of Source" in message:
        return f"{typed}: a source is added as an option: {ADD.format(name=name or 'uf', option='OPTION')}."
    return None
