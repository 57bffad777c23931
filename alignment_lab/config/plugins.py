"""A user's own methods on preference pairs: a Python module that the key `plugin` names, with a dict METHODS.

The one module of the lab that loads code by a name in a string. It knows no torch; a plugin that imports
torch at its top makes every command that names it wait for torch. The source is part of the experiment: its
sha256 is the setting `plugin_sha256`, and a sweep copies it beside the lab's code. Modules that the plugin
imports are not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ..runtime.errors import UserError
from ..runtime.paths import CODE_ROOT
from .methods import METHOD_SCHEMAS, Method, Pairwise

PLUGIN_COPIES = "plugins"  # a folder beside the code of a sweep's snapshot: plugins/SHA256.py


@dataclass(frozen=True)
class MethodPlugin:
    """A method on preference pairs.

    `schema`: a dataclass derived from config.Referenced, or from config.Pairwise for a method without a
    reference; its default `name` is the method's name. `loss(policy, reference, *, SETTINGS)` takes
    losses.PairLogprobs ([B] nats) and returns losses.PairLoss; its keyword-only parameters are fields of the
    schema. Without a reference it is `loss(policy, *, SETTINGS)`.
    """

    schema: type[Pairwise]
    loss: Callable[..., Any]


@dataclass(frozen=True)
class Plugin:
    """A loaded module."""

    reference: str  # as spec.yaml has it: an absolute path, or the name of a module
    source: bytes
    sha256: str
    methods: dict[str, MethodPlugin]


@dataclass
class PluginMethod(Method):
    """Any settings: the type of a plugin's method while Hydra composes it, before the module is loaded."""


_loaded: dict[tuple[str, str], Plugin] = {}  # by reference and sha256


def load_plugin(reference: str, sha256: str | None = None) -> Plugin:
    """The module at a path (`tilted.py`) or of a name (`my_package.tilted`).

    Raises UserError where it cannot be loaded, has no valid METHODS, or where its sha256 is another one.
    """
    file, package = _find(reference)
    source = _read(reference, file, sha256)
    digest = hashlib.sha256(source).hexdigest()
    if sha256 and digest != sha256:
        raise UserError(
            f"plugin={reference}: its source has changed: its sha256 is {digest[:12]}, and plugin_sha256="
            f"{sha256[:12]}...; restore it, or start another experiment with plugin_sha256=null."
        )
    key = (str(file) if package is None else reference, digest)
    if key not in _loaded:
        name = f"{package or 'alignment_lab_plugin'}.{file.stem}_{digest[:12]}"
        _loaded[key] = Plugin(
            key[0], source, digest, _methods(reference, _execute(reference, file, source, name))
        )
    return _loaded[key]


def loaded_plugins() -> list[Plugin]:
    """Every plugin that this process has loaded."""
    return list(_loaded.values())


def merge_method_settings(typed: DictConfig, settings: dict[str, Any]) -> None:
    """Put composed settings into the schema of a plugin's method; errors are those of the lab's methods."""
    for key, value in settings.items():
        try:
            OmegaConf.update(typed, f"method.{key}", value, merge=True)
        except (ConfigKeyError, ConfigAttributeError):
            raise  # names the key
        except OmegaConfBaseException as error:
            text = value if isinstance(value, str) else json.dumps(value)
            raise ConfigCompositionException(f"Error merging override method.{key}={text}") from error


def plugin_loss(method: Method) -> Callable[..., Any] | None:
    """The loss of a plugin's method, with the signature its author gave it; None for a method of the lab.

    Its result is checked: UserError where it is no PairLoss with one number for each pair.
    """
    by_schema = {
        entry.schema: (entry, plugin) for plugin in loaded_plugins() for entry in plugin.methods.values()
    }
    if type(method) not in by_schema:
        return None
    entry, plugin = by_schema[type(method)]  # type: ignore[index]

    @wraps(entry.loss)
    def checked_loss(policy: Any, *reference: Any, **settings: Any) -> Any:
        result = entry.loss(policy, *reference, **settings)
        parts = [getattr(result, part, None) for part in ("losses", "chosen_rewards", "rejected_rewards")]
        if any(getattr(part, "shape", None) != policy.chosen.shape for part in parts):
            raise UserError(
                f"plugin={plugin.reference}: the loss of {method.name} must return PairLoss(losses, "
                "chosen_rewards, rejected_rewards), each with one number for each pair."
            )
        return result

    return checked_loss


def _find(reference: str) -> tuple[Path, str | None]:
    """The module's file, and its package: None for a path, "" for a module in no package."""
    if reference.endswith(".py") or "/" in reference:
        return Path(reference).expanduser().absolute(), None
    if Path(reference).exists():
        what = "is a directory" if Path(reference).is_dir() else "does not end in .py"
        raise UserError(f"plugin={reference}: {what}; give the path of a Python file.")
    try:
        spec = importlib.util.find_spec(reference)
    except Exception as error:  # finding a module imports its package, which may raise anything
        raise UserError(
            f"plugin={reference}: cannot be imported: {type(error).__name__}: {error}."
        ) from error
    if spec is None:
        raise UserError(
            f"plugin={reference}: no module of that name can be imported; "
            "give the path of its file, as in plugin=tilted.py."
        )
    if spec.submodule_search_locations is not None or not spec.origin or not spec.origin.endswith(".py"):
        raise UserError(f"plugin={reference}: is no Python file; name the module in it that has METHODS.")
    return Path(spec.origin), reference.rpartition(".")[0]


def _read(reference: str, file: Path, sha256: str | None) -> bytes:
    """The source: a sweep's own copy where this process runs in its snapshot, else the file as it is now."""
    copy = CODE_ROOT / PLUGIN_COPIES / f"{sha256}.py"
    try:
        return (copy if sha256 and copy.is_file() else file).read_bytes()
    except OSError as error:
        raise UserError(
            f"plugin={reference}: cannot be read ({error.strerror}, looked from {Path.cwd()}); "
            "give the path of a Python file."
        ) from error


def _execute(reference: str, file: Path, source: bytes, name: str) -> ModuleType:
    """Run the source as a module of a name of its own: two versions of a file never meet in sys.modules."""
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    sys.modules[name] = module  # where dataclasses look their module up
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        message = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(
            f"plugin={reference}: {_line(error, file)}{type(error).__name__}: {str(message).rstrip('.')}."
        ) from error
    return module


def _line(error: BaseException, file: Path) -> str:
    """`line 3: `, the last line of the file in the error's traceback."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: " if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"line {lines[-1]}: " if lines else ""


def _methods(reference: str, module: ModuleType) -> dict[str, MethodPlugin]:
    methods = getattr(module, "METHODS", None)
    if not isinstance(methods, dict) or not methods:
        what = "its METHODS is empty" if methods == {} else "has no dict METHODS"
        raise UserError(
            f"plugin={reference}: {what}; write METHODS = {{NAME: MethodPlugin(schema=..., loss=...)}}."
        )
    for name, method in methods.items():
        if problem := _problem(name, method):
            raise UserError(f"plugin={reference}: METHODS[{name!r}]: {problem}.")
    return dict(methods)


def _problem(name: object, method: object) -> str | None:
    """What is wrong with one entry of METHODS."""
    if name in METHOD_SCHEMAS:
        return "the lab has a method of that name; choose another one"
    if not isinstance(method, MethodPlugin):
        return f"its type is {type(method).__name__}; give a MethodPlugin(schema=..., loss=...)"
    schema = method.schema
    if not (isinstance(schema, type) and is_dataclass(schema) and issubclass(schema, Pairwise)):
        return "its schema must be a dataclass derived from alignment_lab.config.Referenced or Pairwise"
    if "__dataclass_fields__" not in vars(schema):
        return f"{schema.__name__} is not decorated with @dataclass"
    try:
        default = OmegaConf.to_object(OmegaConf.structured(schema))
    except (UserError, OmegaConfBaseException, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        return f"the defaults of {schema.__name__} are no valid settings: {reason}"
    if default.name != name:  # type: ignore[union-attr]
        return f'{schema.__name__}.name is "{default.name}"; give it the default "{name}"'  # type: ignore[union-attr]
    return _signature_problem(schema, method.loss)


def _signature_problem(schema: type[Pairwise], loss: Callable[..., Any]) -> str | None:
    """What is wrong with the parameters of a loss."""
    positional = ["policy", "reference"] if schema.needs_reference else ["policy"]
    expected = f"its loss must take ({', '.join(positional)}, *, SETTINGS)"
    if not callable(loss):
        return f"{expected}, and its type is {type(loss).__name__}"
    signature = inspect.signature(loss)
    by_name = {name for name, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY}
    variadic = [
        one for one in signature.parameters.values() if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if variadic or len(signature.parameters) - len(by_name) != len(positional):
        bare = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
        return f"{expected}, and takes {inspect.Signature(bare)}"
    unknown = sorted(by_name - {field.name for field in fields(schema)})
    return f"its loss takes {unknown[0]}, which is no field of {schema.__name__}" if unknown else None
