"""The files of options as Hydra reads them: what is wrong with one is a sentence that names the file.

A user's lie in the folder of --config-dir or --config-path, in hydra.searchpath, or beside the lab's own.
What a file is, is judged here; what it sets is judged when everything is put together (hydra_errors).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from ..runtime.errors import UserError
from ..runtime.files import relative_to_cwd
from ..runtime.library_internals import read_option_files_with
from ..runtime.paths import CONF
from .dotted import flatten
from .groups import GROUPS

OPTION_GROUPS = (*GROUPS, "method", "recipe")
SOURCE_GROUP = "data/source"  # of a mixture; its options lie below those of `data`
SUFFIX = ".yaml"
OTHER_SUFFIXES = (".yml", ".YAML", ".YML", ".yaml.txt", ".json", ".toml")
PACKAGE_LINE = "# @package _global_"


@dataclass(frozen=True)
class OptionFile:
    """A file that Hydra has read."""

    name: str  # as `method/dpo`
    path: Path
    content: Any  # as it is written

    @property
    def defaults(self) -> tuple[Any, ...]:
        """Its `defaults`: `dpo`, `{"override /model": "tiny"}`."""
        return _defaults(self.content)

    def sets(self, key: str) -> list[Any]:
        """What it gives the dotted key, which is its group's or begins with it; nothing where it does not."""
        flat = flatten(self.content) if isinstance(self.content, dict) else {}
        inside = key.removeprefix(f"{self.name.partition('/')[0]}.")
        if self.name.startswith(f"{SOURCE_GROUP}/"):  # under any name in the mixture
            inside = re.sub(r"^sources\.[^.]+\.", "", inside)
        return [flat[name] for name in {key, inside} if name in flat]

    def __str__(self) -> str:
        return str(relative_to_cwd(self.path))

    @property
    def is_users(self) -> bool:
        """Whether it lies outside of the lab's conf/."""
        return not self.path.is_relative_to(CONF)

    @property
    def chosen(self) -> list[str]:
        """The options that its `defaults` name, without their groups."""
        values = [item for item in self.defaults if isinstance(item, str)]
        values += [value for item in self.defaults if isinstance(item, dict) for value in item.values()]
        return [str(value).rpartition("/")[2] for value in values]


_read: dict[str, OptionFile] = {}  # of this composition, by name, in the order of reading


def check_option_files() -> None:
    """Check every file from now on that Hydra reads. Safe to call twice."""
    read_option_files_with(read_option, require_suffix)


def option_file(name: str) -> str:
    """The file of the option `name`, as `method/dpo`, for a sentence."""
    return str(_read.get(name, f"{name}{SUFFIX}"))


def last_read(group: str = "") -> Iterator[OptionFile]:
    """The files of a group, or of all, that were read; the last one first."""
    return (file for file in reversed(_read.values()) if file.name.startswith(group and f"{group}/"))


def chosen_file(group: str) -> OptionFile | None:
    """The file of the group's option that was composed last: not one that it builds on."""
    files = (file for file in last_read(group) if not file.name.startswith(f"{SOURCE_GROUP}/"))
    chosen = next(files, None)
    for file in files:
        if chosen and chosen.name.rpartition("/")[2] in file.chosen:
            chosen = file
    return chosen


def method_without_schema() -> OptionFile | None:
    """The last file of a method that builds on no other option."""
    return next((file for file in last_read("method") if not set(file.defaults) - {"_self_"}), None)


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """What is wrong with a text that is no YAML, with its line where that is known."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}: " if mark else ""
    hint = "; indent with spaces, not with tabs" if "'\\t'" in problem else ""
    return f"{place}this is not valid YAML: {problem}{hint}."


def read_option(folder: Path, name: str, load: Callable[[], ConfigResult]) -> ConfigResult:
    """What `load` reads of an option's file. Raises UserError, naming the file, where it is none."""
    name = name.removesuffix(SUFFIX)
    path = folder / f"{name}{SUFFIX}"
    _require_first(path, name)
    try:
        result, problem = load(), None
        content = OmegaConf.to_container(result.config)
        if not isinstance(content, dict):
            problem = _NO_LINES.format("a list")
        elif name.partition("/")[0] in OPTION_GROUPS and "/" in name:
            problem = _problem(name, content, result.header.get("package"))
    except yaml.YAMLError as error:
        problem = describe_yaml_error(error)
    except UnicodeDecodeError as error:
        problem = f"it is no text in UTF-8 ({error.reason})."
    except ValueError:  # of Hydra, on its first lines
        problem = f"its line `# @package` cannot be read; write `{PACKAGE_LINE}`, and nothing behind it."
    except OSError as error:  # OmegaConf raises one without a number for a file that holds a single value
        problem = f"it cannot be read ({error.strerror})." if error.errno else _NO_LINES.format("one value")
    if problem:
        raise UserError(f"{relative_to_cwd(path)}: {problem}")
    if "/" not in name and not any(name in file.chosen for file in _read.values()):
        _read.clear()  # a composition begins with its primary configuration
    _read.pop(name, None)
    _read[name] = OptionFile(name, path, content)
    return result


def require_suffix(folder: Path, name: str) -> None:
    """Raise UserError where the option that Hydra looks for in `folder` has another suffix than .yaml."""
    if name == "config" or (folder / f"{name.removesuffix(SUFFIX)}{SUFFIX}").is_file():
        return  # the lab's own is found behind a folder that has none of this name
    for path in (folder / f"{name}{suffix}" for suffix in OTHER_SUFFIXES):
        if path.is_file():
            raise UserError(f"{relative_to_cwd(path)}: Hydra reads files that end in {SUFFIX}; rename it.")


def _require_first(path: Path, name: str) -> None:
    """Raise UserError where a file of the lab's would be read, and a user's of that name would not."""
    hydra = GlobalHydra.instance()
    if "/" not in name or not path.is_relative_to(CONF) or not hydra.is_initialized():
        return
    for source in hydra.config_loader().get_sources():
        other = Path(source.path, f"{name}{SUFFIX}")
        if source.scheme() != "file" or other.is_relative_to(CONF) or not other.is_file():
            continue
        if other.read_bytes() != path.read_bytes():
            group, _, option = name.partition("/")
            raise UserError(
                f"{relative_to_cwd(other)}: the lab has a {group}={option} of its own, which goes first; "
                "give yours another name."
            )


_NO_LINES = "it holds {}; an option is made of lines KEY: VALUE."


def _problem(name: str, content: dict[Any, Any], package: str | None) -> str | None:
    """What is wrong with the content of an option's file."""
    if not content:
        return (
            "it is empty; set something in it, or write `defaults: [_self_]` where there is nothing to set."
        )
    first = (package or "_global_").partition(".")[0]
    if name.startswith("recipe/") and first not in ("_global_", "hydra", *OPTION_GROUPS):
        return f"its first line says @package {package}; write `{PACKAGE_LINE}`."
    return _key_problem(content) or ("defaults" in content and _defaults_problem(name, content)) or None


def _key_problem(content: dict[Any, Any], inside: str = "") -> str | None:
    """A key that is no text, or one with dots, as only the command line has them."""
    for key, value in content.items():
        if not isinstance(key, str):
            return f"its key {key} is not text for YAML; put it in quotes, or remove it."
        if "." in key:
            first, _, rest = key.partition(".")
            return f"{inside}{key}: dots are for the command line; write `{first}: {{{rest}: VALUE}}`."
        problem = (
            _key_problem(value, f"{key}: ") if key in OPTION_GROUPS and isinstance(value, dict) else None
        )
        if problem:
            return problem
    return None


def _defaults(content: Any) -> tuple[Any, ...]:
    """What `defaults` has; nothing where it is no list."""
    defaults = content.get("defaults") if isinstance(content, dict) else None
    return tuple(defaults) if isinstance(defaults, list) else ()


def _defaults_problem(name: str, content: dict[Any, Any]) -> str | None:
    defaults = _defaults(content)
    if not defaults:
        return "its `defaults` must be a list, as in `defaults: [_self_]`."
    for item in defaults:
        is_choice = isinstance(item, dict) and len(item) == 1
        if not is_choice and not isinstance(item, str):
            return f"its `defaults` have {item}; each must be an option, or GROUP: OPTION, or _self_."
        value = next(iter(item.values())) if is_choice else None
        if not isinstance(value, str | list | None):
            return f"its `defaults` have {item}; put the name of an option that is a number in quotes."
    if defaults.count("_self_") > 1:
        return "its `defaults` have _self_ twice; leave one of them out."
    if {f"/{name}", name.partition("/")[2]}.intersection(map(str, defaults)):
        return "its `defaults` name this file itself; name another option."
    return None
