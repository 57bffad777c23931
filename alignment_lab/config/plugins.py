"""A user's own methods on preference pairs: a Python module that the key `plugin` names, and its dict METHODS.

This is the one module of the lab that loads code by a name in a string. Knows no torch; a module that imports torch at its top makes every
command that names it wait for torch. The source is part of the experiment: its sha256 is a setting, `plugin_sha256`, and a sweep copies it
beside the lab's code. Modules that the plugin itself imports are not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..runtime.errors import UserError
from ..runtime.paths import CODE_ROOT
from .methods import METHOD_SCHEMAS, Method, Pairwise

if TYPE_CHECKING:
    from .experiment import Experiment

PLUGIN_COPIES = "plugins"  # beside the code of a sweep's snapshot: plugins/SHA256.py


@dataclass(frozen=True)
class MethodPlugin:
    """A method on preference pairs.

    `schema` is a dataclass derived from config.Referenced, or from config.Pairwise for a method without a reference; its `name` is the
    method's name. `loss(policy, reference, *, SETTINGS)` takes losses.PairLogprobs ([B] nats) and returns losses.PairLoss; its keyword-only
    parameters are fields of the schema. Without a reference it is `loss(policy, *, SETTINGS)`.
    """

    schema: type[Pairwise]
    loss: Callable[..., Any]


@dataclass(frozen=True)
class Plugin:
    """A loaded module."""

    reference: str  # what spec.yaml has: an absolute path, or the name of a module
    source: bytes
    sha256: str
    methods: dict[str, MethodPlugin]


@dataclass
class PluginMethod(Method, dict[str, Any]):  # type: ignore[misc]
    """Any settings: the type of a plugin's method while Hydra composes it, before the module is loaded. See `schema/method/plugin`."""


_loaded: dict[tuple[str, str], Plugin] = {}  # by reference and sha256


def load_plugin(reference: str, sha256: str | None = None) -> Plugin:
    """The module at a path (`tilted.py`) or of a name (`my_package.tilted`).

    Raises UserError where it cannot be loaded, declares no valid METHODS, or where its source is not that of `sha256`.
    """
    file, package = _find(reference)
    copy = CODE_ROOT / PLUGIN_COPIES / f"{sha256}.py"
    if sha256 and copy.is_file():
        source = copy.read_bytes()
    elif file.is_file():
        source = file.read_bytes()
    else:
        raise UserError(f"plugin={reference}: there is no such file; give the path of a Python file.")
    digest = hashlib.sha256(source).hexdigest()
    if sha256 and digest != sha256:
        raise UserError(
            f"plugin={reference}: its source has changed: sha256 {digest[:12]} instead of {sha256[:12]}; "
            "restore it, or begin another experiment with plugin_sha256=null."
        )
    stored = reference if package is not None else str(file)
    if (stored, digest) not in _loaded:
        module = _execute(reference, file, source, f"{package or 'alignment_lab_plugin'}.{file.stem}_{digest[:12]}")
        _loaded[stored, digest] = Plugin(stored, source, digest, _methods(reference, module))
    return _loaded[stored, digest]


def loaded_schemas() -> dict[str, type[Pairwise]]:
    """The schemas of every plugin that this process has loaded, by method name; for messages that name the nearest key."""
    return {name: method.schema for plugin in _loaded.values() for name, method in plugin.methods.items()}


def plugin_of(spec: Experiment) -> Plugin | None:
    """The plugin that defines the method of this experiment; None where the method is the lab's own."""
    return load_plugin(spec.plugin, spec.plugin_sha256) if spec.plugin else None


def plugin_loss(spec: Experiment) -> Callable[..., Any] | None:
    """The loss of a plugin's method, with the signature that the user gave it; None where the method is the lab's own.

    What it returns is checked: UserError where it is no PairLoss with one number for each pair.
    """
    plugin = plugin_of(spec)
    if plugin is None:
        return None
    loss, name = plugin.methods[spec.method.name].loss, spec.method.name

    @wraps(loss)
    def checked_loss(policy: Any, *reference: Any, **settings: Any) -> Any:
        result = loss(policy, *reference, **settings)
        parts = [getattr(result, part, None) for part in ("losses", "chosen_rewards", "rejected_rewards")]
        if any(getattr(part, "shape", None) != policy.chosen.shape for part in parts):
            raise UserError(
                f"plugin={plugin.reference}: the loss of {name} must return "
                "PairLoss(losses, chosen_rewards, rejected_rewards) with one number for each pair in each of them."
            )
        return result

    return checked_loss


def _find(reference: str) -> tuple[Path, str | None]:
    """The module's file, and the package it belongs to: None for a path, "" for a top-level module."""
    if reference.endswith(".py") or "/" in reference:
        return Path(reference).expanduser().absolute(), None
    try:
        spec = importlib.util.find_spec(reference)
    except Exception as error:  # importing its parent package may raise anything
        raise UserError(f"plugin={reference}: it cannot be imported: {type(error).__name__}: {error}.") from error
    if spec is None:
        raise UserError(
            f"plugin={reference}: no module of that name can be imported; give the path of its file, as in plugin=tilted.py."
        )
    if spec.submodule_search_locations is not None or not spec.origin or not spec.origin.endswith(".py"):
        raise UserError(f"plugin={reference}: is no Python file; name the module in it that has METHODS.")
    return Path(spec.origin), reference.rpartition(".")[0]


def _execute(reference: str, file: Path, source: bytes, name: str) -> ModuleType:
    """Run the source as a module of its own, so that two versions of a file do not meet in sys.modules."""
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and typing look their module up
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"plugin={reference}: {_line(error, file)}{type(error).__name__}: {error}.") from error
    return module


def _line(error: Exception, file: Path) -> str:
    """`line 3: `, the last line of the file that took part in the error."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"line {lines[-1]}: " if lines else ""


def _methods(reference: str, module: ModuleType) -> dict[str, MethodPlugin]:
    methods = getattr(module, "METHODS", None)
    if not isinstance(methods, dict) or not methods or not all(isinstance(name, str) for name in methods):
        raise UserError(
            f"plugin={reference}: it has no METHODS; write METHODS = {{NAME: MethodPlugin(schema=..., loss=...)}}."
        )
    for name, method in methods.items():
        if problem := _problem(name, method):
            raise UserError(f"plugin={reference}: METHODS[{name!r}]: {problem}.")
    return dict(methods)


def _problem(name: str, method: object) -> str | None:
    """What is wrong with one entry of METHODS."""
    if name in METHOD_SCHEMAS or name == "plugin":
        return "the lab has a method of that name; choose another"
    if not isinstance(method, MethodPlugin):
        return f"give MethodPlugin(schema=..., loss=...), and not {type(method).__name__}"
    schema = method.schema
    if not (isinstance(schema, type) and is_dataclass(schema) and issubclass(schema, Pairwise)):
        return "its schema must be a dataclass derived from alignment_lab.config.Referenced or Pairwise"
    try:
        default_name = OmegaConf.to_object(OmegaConf.structured(schema)).name  # type: ignore[union-attr]
    except (UserError, OmegaConfBaseException, TypeError) as error:
        return f"its schema {schema.__name__} has no valid defaults: {' '.join(str(error).split()).rstrip('.')}"
    if default_name != name:
        return f'{schema.__name__}.name is "{default_name}"; write name: str = "{name}"'
    return _signature_problem(schema, method.loss)


def _signature_problem(schema: type[Pairwise], loss: Callable[..., Any]) -> str | None:
    positional = ["policy", "reference"] if schema.needs_reference else ["policy"]
    expected = f"its loss must take ({', '.join(positional)}, *, SETTINGS)"
    if not callable(loss):
        return expected
    parameters = inspect.signature(loss).parameters.values()
    kinds = [parameter.kind for parameter in parameters]
    if any(kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for kind in kinds):
        return f"{expected}, without *args and **kwargs"
    settings = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if len(kinds) - len(settings) != len(positional):
        return f"{expected}, and takes {inspect.signature(loss)}"
    unknown = [name for name in settings if name not in {field.name for field in fields(schema)}]
    return f"its loss takes {unknown[0]}, which is no field of {schema.__name__}" if unknown else None
