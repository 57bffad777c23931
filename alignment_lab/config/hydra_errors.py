"""The errors of Hydra and OmegaConf as one sentence: the key, the value, the nearest real one, the remedy.

Reads the command line, to name a setting as the user wrote it.
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

from ..runtime.errors import UserError
from . import GROUPS, known_keys


def is_group_error(error: Exception) -> bool:
    """Whether a group was set to a number or to null, for which Hydra has only a ValueError."""
    return "Config group override must be a string or a list" in str(error)


def is_part_of_null(error: Exception) -> bool:
    """Whether a part was set of what is null, or several at once, for which OmegaConf has only an assertion and an AttributeError."""
    asserted = isinstance(error, AssertionError) and str(error).startswith("Unexpected type for root")
    return asserted or (
        isinstance(error, AttributeError)
        and "full_key: " in str(error)
        and "object_type=NoneType" in str(error)
    )


def describe_hydra_error(error: Exception) -> str:
    """One sentence for what Hydra, OmegaConf or the lab raised: the key, the value, the nearest real one, the remedy."""
    if isinstance(error, UserError):
        return str(error)
    if is_group_error(error):
        return f"{_written(lambda key: key in GROUPS or key in ('method', 'recipe', ''))}: a group needs the name of one of its options."
    if is_part_of_null(error):
        return _part_of_nothing()
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        key = str(error).partition("ing mandatory value: ")[2].split()[0]
        return f"{_written(lambda word: word == key, key)}: it cannot be left out; choose one of its options with {key}=OPTION."
    if isinstance(error, InterpolationResolutionError):
        key, name = str(error.full_key), re.search(r"(?:key|variable) '([^']+)'", str(error))
        to = name[1] if name else "a value"
        return f"{_written(lambda word: word == key, key)}: it refers to {to}, which does not exist; set it, or give a value."
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _no_such_option(str(error.missing_cfg_file), list(error.options))
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as KEY=VALUE; quote special characters, as in 'key=\"a, b\"'."
        )
    if isinstance(error, MissingConfigException):
        return (
            f"{' '.join(str(error).partition('. ')[0].split())}; python train.py --help says what there is."
        )
    cause = str(error.__cause__ or error).splitlines()[0]
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, str(error)):
            return sentence(found[1], cause)
    return " ".join(str(error).split())


def _no_such_option(file: str, options: list[str]) -> str:
    group, _, option = file.rpartition("/")
    return (
        f"{group}={option}: no such option{_nearest(option, options) or '.'} There are: {', '.join(options)}."
    )


def _part_of_nothing() -> str:
    """Only an option that brings a shape has one to change; every other setting that may be null is one value."""
    shape = _written(lambda key: key.startswith("model.shape")).lstrip("+~")
    if shape:
        model = _written(lambda key: key == "model", "this model")
        return (
            f"{shape}: {model} has no shape to change, as its weights bring their own in config.json; leave it out, "
            "or plan with a model of its size, as model=llama-3.1-8b."
        )
    known = set(known_keys())
    written = _written(
        lambda key: any(key.startswith(f"{one}.") for one in known - set(GROUPS) - {"method"})
    ).lstrip("+~")
    return f"{written}: {written.partition('=')[0].rpartition('.')[0]} is one value and has no parts; set it as a whole."


def _no_such_key(key: str, cause: str) -> str:
    known = known_keys()
    group, _, name = key.rpartition(".")
    inside = [full for full in known if full.rpartition(".")[0] == group]
    written = _written(lambda word: word == key, key)
    if key in known and written[0] == "+":
        return f"{written}: the key is there already; leave the + out."
    if key in known:
        of = _written(lambda word: word == group, group)
        return f"{_as_written(key)}: {of} has no such setting; leave it out."
    same_name = [full for full in known if full.rpartition(".")[2] == name]
    near = _nearest(name, [full.rpartition(".")[2] for full in inside])
    near = near.replace("mean ", f"mean {group}.") if group else near
    hint = f"; did you mean {' or '.join(same_name)}?" if same_name else near
    if group in known and not inside:
        hint = f"; {group} is one value and has no parts."
    if not hint and group in known:
        hint = f"; {group} has {', '.join(full.rpartition('.')[2] for full in inside)}."
    return f"{_as_written(key)}: no such key{hint or '; python train.py --cfg job lists them all.'}"


def _wrong_value(override: str, cause: str) -> str:
    """OmegaConf says what it cannot do with the value; what follows is the kind that it wants."""
    if "support deletion" in cause:
        return f"{override}: this key cannot be taken away; set it instead."
    if "Cannot convert" in cause and "to string" in cause:
        return f"{override}: give text, in quotes where it holds special characters."
    if "not a subclass of" in cause:
        inside = [full for full in known_keys() if full.startswith(f"{override.partition('=')[0]}.")]
        return f"{override}: it is no single value; set {', '.join(inside)}."
    wanted = re.search(
        r"(?:converted to|not a valid) (\w+)|expected one of (\[.*\])|is not (a ListConfig|Optional)", cause
    )
    if wanted is None:
        return f"{override}: {cause}"
    kind = _KINDS.get(wanted[1] or wanted[3])
    return (
        f"{override}: give {kind}."
        if kind
        else f"{override}: give one of {wanted[2]}{_nearest_choice(override, wanted[2])}"
    )


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


def _written(fits: Callable[[str], bool], otherwise: str = "") -> str:
    """The word of the command line whose key fits, as the user wrote it."""
    return next((word for word in sys.argv[1:] if fits(word.lstrip("+~").partition("=")[0])), otherwise)


def _as_written(key: str) -> str:
    """The key with the value that the user gave it, without what stands before it."""
    return _written(lambda word: word == key, key).lstrip("+~")


# The phrases of Hydra and OmegaConf; a test provokes each of them.
_SENTENCES = (
    (r"Could not (?:override|append|delete)[^']*'([^']+)'", _no_such_key),
    (r"Key '[^']+' not in '\w+'\s+full_key: (\S+)", _no_such_key),
    (r"Error merging override (.*)", _wrong_value),
)
