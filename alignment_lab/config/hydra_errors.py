"""The errors of Hydra and OmegaConf as one sentence: the key, the value, the nearest real one, the remedy.

It reads the command line, to name a setting as the user wrote it.
"""

from __future__ import annotations

import re
import sys

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from ..runtime.command_line import typed_command, typed_override
from ..runtime.errors import UserError
from . import GROUPS, known_keys
from .option_errors import LACKS_SCHEMA, describe_option_error, no_such_option, option_prefix
from .option_files import chosen_file
from .source_errors import describe_source_error
from .validation import did_you_mean
from .value_errors import (
    describe_null,
    describe_reference,
    describe_wrong_value,
    describe_wrong_value_in_option,
    is_broken_reference,
)

# Groups that an override can name; '' is that of `=3`
_GROUP_KEYS = (*GROUPS, "method", "recipe", "")
# how near a name in the group is that goes before the same name elsewhere; without one, any near name
_MISSPELT, _NEAR = 0.85, 0.6


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


def is_flag_error(error: Exception) -> bool:
    """Whether flags of Hydra's exclude each other or lack something: a bare ValueError, or a warning."""
    return any(re.match(pattern, str(error)) for pattern, _ in _FLAG_MISTAKES)


def describe_hydra_error(error: Exception) -> str:
    """One sentence for an error of Hydra, OmegaConf or the lab: key, value, the nearest real one, remedy."""
    if isinstance(error, HydraException | OmegaConfBaseException) and (
        sentence := describe_source_error(error)
    ):
        return sentence
    if sentence := describe_option_error(error):
        return sentence
    if isinstance(error, UserError):
        return str(error)
    if is_group_error(error):
        return (
            f"{typed_override(lambda key: key in _GROUP_KEYS)}: a group needs the name of one of its options."
        )
    if is_part_of_null(error):
        return _part_of_null()
    for pattern, sentence in _FLAG_MISTAKES:
        if match := re.match(pattern, str(error)):
            return match.expand(sentence)
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        return _missing_value(error)
    if isinstance(error, OmegaConfBaseException) and is_broken_reference(error):
        return describe_reference(error)
    if sentence := describe_null(error):
        return sentence
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as KEY=VALUE; quote special characters, as in 'key=\"a, b\"'."
        )
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    cause = _SITUATION.sub("", str(error.__cause__ or error)).splitlines()[0]
    for pattern, describe in _DESCRIPTIONS:
        if match := re.search(pattern, str(error)):
            return option_prefix(str(error)) + describe(match[1], cause)
    return " ".join(str(error).split())


def _missing_value(error: MissingMandatoryValue | InterpolationToMissingValueError) -> str:
    """A group without an option, or a setting that no option sets."""
    name = str(error).partition("ing mandatory value: ")[2].split()[0]
    if name in _GROUP_KEYS:
        if (file := chosen_file(name)) and file.is_users:
            return f"{file}: {LACKS_SCHEMA if name == 'method' else f'it sets nothing of {name}.'}"
        typed = typed_override(lambda key: key == name, name)
        return f"{typed}: it cannot be left out; choose one of its options with {name}=OPTION."
    key = str(error.full_key or name)
    return f"{typed_override(lambda typed: typed == key, key)}: it has no value; set it: {key}=VALUE."


def _missing_config(error: MissingConfigException) -> str:
    if error.options is not None:
        return no_such_option(str(error.missing_cfg_file), list(error.options))
    several = re.search(r"Could not load '(\w+)/", str(error))
    typed = typed_override(lambda key: several is not None and key == several[1])
    if (names := typed.partition("=")[2]).startswith("["):
        sweep = f"{several[1] if several else ''}={names[1:-1]}"
        return f"{typed}: a group has one option; give one, or a run with each by --multirun {sweep}."
    return f"{' '.join(str(error).partition('. ')[0].split())}; {typed_command()} --help lists what there is."


def _part_of_null() -> str:
    """Only the shape of a model has parts to change; every other setting that may be null is one value."""
    shape = typed_override(lambda key: key.startswith("model.shape")).lstrip("+~")
    if shape:
        model = typed_override(lambda key: key == "model", "this model")
        return (
            f"{shape}: {model} has no shape to change, as its weights bring their own in config.json; "
            "leave it out, or plan with a model of its size, as model=llama-3.1-8b."
        )
    settings = set(known_keys()) - set(GROUPS) - {"method"}
    typed = typed_override(lambda key: any(key.startswith(f"{setting}.") for setting in settings)).lstrip(
        "+~"
    )
    whole = typed.partition("=")[0].rpartition(".")[0]
    return f"{typed}: {whole} is one value and has no parts; set it as a whole."


def _no_such_key(key: str, cause: str) -> str:
    keys, (group, _, name) = known_keys(), key.rpartition(".")
    if key in keys and (typed := typed_override(lambda typed: typed == key, key)).startswith("+"):
        return f"{typed}: the key exists already; leave the + out."
    if (typed := typed_override(lambda typed: typed == key)).startswith("~") and key in keys:
        return f"{typed}: this key cannot be removed; set it instead."
    if key in keys:
        option = typed_override(lambda typed: typed == group, group)
        return f"{_typed_setting(key)}: {option} has no such setting; leave it out."
    hint = _key_hint(group, name) or f"; {typed_command()} --cfg job lists them all."
    return f"{_typed_setting(key)}: no such key{hint}"


def _key_hint(group: str, name: str) -> str:
    """Where a key of this name is, the nearest name in its group, or what the group has."""
    keys = known_keys()
    in_group = [_last_part(key) for key in keys if key.rpartition(".")[0] == group]
    if group in keys and not in_group:
        return f"; {group} is one value and has no parts."
    elsewhere = [key for key in keys if _last_part(key) == name]
    if nearest := did_you_mean(name, in_group, cutoff=_MISSPELT if elsewhere else _NEAR):
        return nearest.replace("mean ", f"mean {group}.") if group else nearest
    if elsewhere:
        depth = min(key.count(".") for key in elsewhere)
        return f"; did you mean {' or '.join(key for key in elsewhere if key.count('.') == depth)}?"
    return f"; {group} has {', '.join(in_group)}." if group in keys else ""


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]


def _several_values(override: str, cause: str) -> str:
    """A comma, range(), choice() or interval() without --multirun."""
    key, _, values = override.lstrip("+").partition("=")
    if "--cfg" in sys.argv or "-c" in sys.argv:
        return f"{override}: --cfg shows one experiment; give one value."
    if re.match(r"(tag\(.*)?interval\(", values):
        return f"{override}: it is searched; add --multirun and hydra/sweeper=optuna, or give one value."
    several = f"{override}: it has several values; add --multirun for a run with each, or give one"
    if key in (*_GROUP_KEYS, "recipe") or "/" in key or "(" in values:
        return f"{several}."
    return f"{several}; a list is written [{values}], and text with a comma '{key}=\"{values}\"'."


def _hydras_own(override: str, cause: str) -> str:
    return f"{override}: what Hydra itself does cannot be swept; give one value."


def _typed_setting(key: str) -> str:
    """The key with the value that the user gave it, without a prefix of Hydra's."""
    return typed_override(lambda typed: typed == key, key).lstrip("+~")


_SITUATION = re.compile(r"^In '[^']+': \w+ raised while composing config:\s*")

# Phrases of Hydra about its flags, and what to do
_FLAG_MISTAKES = (
    (
        "Only one of --run, --multirun, --cfg, --info",
        "--multirun, --cfg, --info and --run: only one of them at a time; --cfg and --info show one "
        "experiment, and --multirun with action=plan shows every cell of a sweep.",
    ),
    ("The --resolve flag can only", "--resolve: it belongs to --cfg job; give that too."),
    (
        r"Expecting one subcommand from",
        "--shell-completion: say for which shell, as install=bash.",
    ),
    (
        r"No completion plugin for '(.*)' found",
        r"--shell-completion: there is none for \1; give bash, fish or zsh.",
    ),
    (r"File (.*) does not exist!", r"--experimental-rerun=\1: no such file."),
    (r"provider=hydra\.searchpath.*, path=(.*) is not available", r"hydra.searchpath: \1: no such folder."),
)
# Phrases of Hydra and OmegaConf; a test provokes each of them.
_DESCRIPTIONS = (
    (r"Ambiguous value for argument '([^']+)'", _several_values),
    (r"Sweep parameters '(.+)' requires --multirun", _several_values),
    (r"Sweeping over Hydra's configuration is not supported : '(.+)'", _hydras_own),
    (r"Could not (?:override|append|delete)[^']*'([^']+)'", _no_such_key),
    (r"Key '[^']+' not in '\w+'\s+full_key: (\S+)", _no_such_key),
    (r"Error merging override (.*)", describe_wrong_value),
    (r"^In '[^']+': ValidationError[\s\S]*full_key: (\S+)", describe_wrong_value_in_option),
)
