"""The errors of Hydra and OmegaConf as one sentence: the key, the value, the nearest real one, the remedy.

It reads the command line, to name a setting as the user wrote it.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
)

from ..runtime.command_line import typed_command
from ..runtime.errors import UserError
from . import GROUPS, known_keys

# Groups that an override can name; '' is that of `=3`
_GROUP_KEYS = (*GROUPS, "method", "recipe", "")


def is_group_error(error: Exception) -> bool:
    """Whether a group was set to a number or to null: Hydra raises a bare ValueError."""
    return "Config group override must be a string or a list" in str(error)


def is_part_of_null(error: Exception) -> bool:
    """Whether a key inside a null was set, or several: OmegaConf raises AssertionError or AttributeError."""
    if isinstance(error, AssertionError):
        return str(error).startswith("Unexpected type for root")
    message = str(error)
    in_null = "full_key: " in message and "object_type=NoneType" in message
    return isinstance(error, AttributeError) and in_null


def describe_hydra_error(error: Exception) -> str:
    """One sentence for an error of Hydra, OmegaConf or the lab: key, value, the nearest real one, remedy."""
    if isinstance(error, UserError):
        return str(error)
    if is_group_error(error):
        return f"{_typed(lambda key: key in _GROUP_KEYS)}: a group needs the name of one of its options."
    if is_part_of_null(error):
        return _part_of_null()
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        return _missing_value(error)
    if isinstance(error, InterpolationResolutionError):
        return _unresolved_reference(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as KEY=VALUE; quote special characters, as in 'key=\"a, b\"'."
        )
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    cause = _SITUATION.sub("", str(error.__cause__ or error)).splitlines()[0]
    for pattern, describe in _DESCRIPTIONS:
        if match := re.search(pattern, str(error)):
            return _option_file(str(error)) + describe(match[1], cause)
    return " ".join(str(error).split())


def _option_file(message: str) -> str:
    """The option's file, where the mistake is in one and not on the command line."""
    file = re.match(r"In '([^']+)': ", message)
    return f"{file[1]}.yaml: " if file else ""


def _missing_value(error: MissingMandatoryValue | InterpolationToMissingValueError) -> str:
    """A group without an option, or a setting that no option sets."""
    name = str(error).partition("ing mandatory value: ")[2].split()[0]
    if name in _GROUP_KEYS:
        typed = _typed(lambda key: key == name, name)
        return f"{typed}: it cannot be left out; choose one of its options with {name}=OPTION."
    key = str(error.full_key or name)
    return f"{_typed(lambda typed: typed == key, key)}: it has no value; set it: {key}=VALUE."


def _unresolved_reference(error: InterpolationResolutionError) -> str:
    key, name = str(error.full_key), re.search(r"(?:key|variable) '([^']+)'", str(error))
    typed, target = _typed(lambda typed: typed == key, key), name[1] if name else "a value"
    return f"{typed}: it refers to {target}, which does not exist; set it, or give a value."


def _missing_config(error: MissingConfigException) -> str:
    if error.options is not None:
        return _no_such_option(str(error.missing_cfg_file), list(error.options))
    return f"{' '.join(str(error).partition('. ')[0].split())}; {typed_command()} --help lists what there is."


def _no_such_option(file: str, options: list[str]) -> str:
    group, _, option = file.rpartition("/")
    hint = _did_you_mean(option, options) or "."
    return f"{group}={option}: no such option{hint} There are: {', '.join(options)}."


def _part_of_null() -> str:
    """Only the shape of a model has parts to change; every other setting that may be null is one value."""
    shape = _typed(lambda key: key.startswith("model.shape")).lstrip("+~")
    if shape:
        model = _typed(lambda key: key == "model", "this model")
        return (
            f"{shape}: {model} has no shape to change, as its weights bring their own in config.json; "
            "leave it out, or plan with a model of its size, as model=llama-3.1-8b."
        )
    settings = set(known_keys()) - set(GROUPS) - {"method"}
    typed = _typed(lambda key: any(key.startswith(f"{setting}.") for setting in settings)).lstrip("+~")
    whole = typed.partition("=")[0].rpartition(".")[0]
    return f"{typed}: {whole} is one value and has no parts; set it as a whole."


def _no_such_key(key: str, cause: str) -> str:
    keys, (group, _, name) = known_keys(), key.rpartition(".")
    if key in keys and (typed := _typed(lambda typed: typed == key, key)).startswith("+"):
        return f"{typed}: the key exists already; leave the + out."
    if key in keys:
        option = _typed(lambda typed: typed == group, group)
        return f"{_typed_setting(key)}: {option} has no such setting; leave it out."
    hint = _key_hint(group, name) or f"; {typed_command()} --cfg job lists them all."
    return f"{_typed_setting(key)}: no such key{hint}"


def _key_hint(group: str, name: str) -> str:
    """Where a key of this name is, the nearest name in its group, or what the group has."""
    keys = known_keys()
    in_group = [_last_part(key) for key in keys if key.rpartition(".")[0] == group]
    if group in keys and not in_group:
        return f"; {group} is one value and has no parts."
    if elsewhere := [key for key in keys if _last_part(key) == name]:
        return f"; did you mean {' or '.join(elsewhere)}?"
    if nearest := _did_you_mean(name, in_group):
        return nearest.replace("mean ", f"mean {group}.") if group else nearest
    return f"; {group} has {', '.join(in_group)}." if group in keys else ""


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]


def _no_method_schema(file: str, cause: str) -> str:
    """A user's option of the group `method` that refers to no schema."""
    return (
        "it has settings of a method and no schema for them; let it begin as conf/method/dpo.yaml does, "
        "or for a plugin with defaults: [/schema/method/plugin@method, _self_]."
    )


def _wrong_value_in_option(key: str, cause: str) -> str:
    value = re.search(r"alue '(.*?)'(?: of type| for field|, expected)", cause)
    return _wrong_value(f"{key}={value[1]}" if value else key, cause)


def _wrong_value(override: str, cause: str) -> str:
    """OmegaConf says what it cannot do with the value; the sentence says which type it needs."""
    if "support deletion" in cause:
        return f"{override}: this key cannot be removed; set it instead."
    if "Cannot convert" in cause and "to string" in cause:
        return f"{override}: give text, in quotes where it holds special characters."
    if "not a subclass of" in cause:
        parts = [key for key in known_keys() if key.startswith(f"{override.partition('=')[0]}.")]
        return f"{override}: it is no single value; set {', '.join(parts)}."
    expected = re.search(
        r"(?:converted to|not a valid) (\w+)|expected one of (\[.*\])|(a ListConfig|Optional|value 'None')",
        cause,
    )
    if expected is None:
        return f"{override}: {cause}"
    if kind := _TYPES.get(expected[1] or expected[3]):
        return f"{override}: give {kind}."
    choices = str(expected[2])
    nearest = _did_you_mean(override.partition("=")[2], choices[1:-1].split(", "))
    return f"{override}: give one of {choices}{nearest or '.'}"


_TYPES = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "a ListConfig": "a list, as in [a,b]",
    "Optional": "a value: null is not one here",
    "value 'None'": "a value: null is not one here",
}


def _did_you_mean(word: str, candidates: list[str]) -> str:
    nearest = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _typed(matches: Callable[[str], bool], default: str = "") -> str:
    """The override of the command line whose key matches, as the user typed it."""
    return next((word for word in sys.argv[1:] if matches(word.lstrip("+~").partition("=")[0])), default)


def _typed_setting(key: str) -> str:
    """The key with the value that the user gave it, without a prefix of Hydra's."""
    return _typed(lambda typed: typed == key, key).lstrip("+~")


_SITUATION = re.compile(r"^In '[^']+': \w+ raised while composing config:\s*")

# Phrases of Hydra and OmegaConf; a test provokes each of them.
_DESCRIPTIONS = (
    (r"In '(method/[^']+)': ConfigKeyError[^']+Key '[^']+' not in 'Method'", _no_method_schema),
    (r"Could not (?:override|append|delete)[^']*'([^']+)'", _no_such_key),
    (r"Key '[^']+' not in '\w+'\s+full_key: (\S+)", _no_such_key),
    (r"Error merging override (.*)", _wrong_value),
    (r"^In '[^']+': ValidationError[\s\S]*full_key: (\S+)", _wrong_value_in_option),
)
