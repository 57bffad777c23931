"""A value that OmegaConf refuses, as one sentence: of another type, null where none may be, a reference to
nothing.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
    ValidationError,
)

from ..runtime.command_line import typed_override, typed_word
from . import known_keys
from .option_errors import option_prefix
from .validation import did_you_mean

_KINDS = {
    BooleanNode: "true or false",
    IntegerNode: "a whole number",
    FloatNode: "a number",
    ListConfig: "a list, as in [a,b]",
    DictConfig: "a mapping, as in {a: b}",
}
_TYPES = {
    "Integer": _KINDS[IntegerNode],
    "Float": _KINDS[FloatNode],
    "bool": _KINDS[BooleanNode],
    "a ListConfig": _KINDS[ListConfig],
}


def describe_null(error: Exception) -> str | None:
    """What a setting must be in place of null, and its default; None where the error is another one.

    The default is what the options set before this value: OmegaConf's error holds it.
    """
    cause = error.__cause__ or error.__context__ or error  # context: of a value in an option's file
    if not isinstance(cause, ValidationError) or not re.search("is not Optional|alue 'None'", str(cause)):
        return None
    key, settings = str(cause.full_key), cause.parent_node
    typed = typed_override(lambda word: word == key) or f"{key}=null"
    if parts := [part for part in known_keys() if part.startswith(f"{key}.")]:
        return f"{typed}: it is no single value; set {', '.join(parts)}."
    value = OmegaConf.to_container(settings).get(cause.key) if isinstance(settings, DictConfig) else None  # type: ignore[union-attr]
    shown = _shown(value)
    remedy = f"leave it out for its default, {shown}." if shown else "leave it out."
    return f"{option_prefix(str(error))}{typed}: must be {_kind(cause.child_node, value)}; {remedy}"


def _kind(node: Any, value: Any) -> str:
    """What a setting takes whose node in the config, and value, these are."""
    if isinstance(value, Enum):
        return f"one of [{', '.join(type(value).__members__)}]"
    return next((kind for kind_of_node, kind in _KINDS.items() if isinstance(node, kind_of_node)), "text")


def _shown(value: Any) -> str:
    """A value as it is typed; nothing where there is none, or a mapping."""
    if value is None or isinstance(value, dict) or value == "???":
        return ""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return value.name if isinstance(value, Enum) else str(value)


def describe_reference(error: OmegaConfBaseException) -> str:
    """Which setting refers with ${} to what is not there, and how it is mended.

    Hydra resolves the command line as well, where an error has no key: the word is looked for then.
    """
    cause, key = str(error).splitlines()[0], error.full_key
    if match := re.search(r"Environment variable '([^']*)' not found", cause):
        name = match[1]
        problem = (
            f"the environment variable {name} is not set; set it, give a value, or one for where it is not "
            f"set: ${{oc.env:{name},VALUE}}."
        )
    elif match := re.search(r"nterpolation key '([^']*)' not found", cause):
        name = match[1]
        hint = did_you_mean(name, known_keys()) or "; name a key that exists, or give a value."
        problem = f"it refers to the key {name}, which does not exist{hint}"
    elif match := re.search(r"Unsupported interpolation type (\S+)", cause):
        name = match[1]
        problem = f"${{{name}:}} means nothing here; an environment variable is ${{oc.env:NAME}}."
    else:
        name = ""
        reason = cause.rpartition("interpolation: ")[2]
        problem = f"what ${{}} in it refers to cannot be found ({reason}); correct it."
    holds = re.compile(rf"\$\{{.*\b{re.escape(name)}\b")
    typed = typed_word(lambda word: bool(holds.search(word)))
    if not typed:
        typed = typed_override(lambda word: word == key, str(key)) if key else "a setting of the options"
    return f"{typed}: {problem}"


def is_broken_reference(error: Exception) -> bool:
    """Whether a setting refers with ${} to what is not there, or in words that mean nothing."""
    return isinstance(error, InterpolationResolutionError | UnsupportedInterpolationType)


def describe_wrong_value(override: str, cause: str) -> str:
    """OmegaConf says what it cannot do with the value; the sentence says which type it needs."""
    if "support deletion" in cause:
        return f"{override}: this key cannot be removed; set it instead."
    if "Cannot convert" in cause and "to string" in cause:
        return f"{override}: give text, in quotes where it holds special characters."
    if "not a subclass of" in cause:
        parts = [key for key in known_keys() if key.startswith(f"{override.partition('=')[0]}.")]
        what = (
            f"it is no single value; set {', '.join(parts)}" if parts else "give a list of text, as in [a,b]"
        )
        return f"{override}: {what}."
    expected = re.search(r"(?:converted to|not a valid) (\w+)|expected one of (\[.*\])|(a ListConfig)", cause)
    if expected is None:
        return f"{override}: {cause}"
    if kind := _TYPES.get(expected[1] or expected[3]):
        return f"{override}: give {kind}."
    choices = str(expected[2])
    nearest = did_you_mean(override.partition("=")[2], choices[1:-1].split(", "))
    return f"{override}: give one of {choices}{nearest or '.'}"


def describe_wrong_value_in_option(key: str, cause: str) -> str:
    """The same of a value in an option's file."""
    value = re.search(r"alue '(.*?)'(?: of type| for field|, expected)", cause)
    return describe_wrong_value(f"{key}={value[1]}" if value else key, cause)
