"""The whole experiment: which settings exclude each other, its schema in Hydra, and its form in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ..runtime.command_line import typed_command
from ..runtime.redaction import redact, redact_data
from .dotted import flatten, prefixes
from .groups import (
    GROUPS,
    Adapter,
    Attention,
    Data,
    DeviceType,
    Dtype,
    Eval,
    Measure,
    Model,
    Parallel,
    Shape,
    Source,
    Tracking,
    Training,
)
from .identity import identity
from .methods import METHOD_SCHEMAS, Method
from .objective import check_objective
from .option_errors import LACKS_SCHEMA
from .option_files import last_read, method_without_schema
from .plugins import PluginMethod, load_plugin, loaded_plugins, merge_method_settings
from .validation import SpecError, require

Action = Enum("Action", ["train", "plan", "preview", "evaluate"])


@dataclass
class PlanOptions:
    """The options of `action=plan`."""

    device: str | None = None  # a name in estimate.DEVICES; null: this machine's, else every known one


@dataclass
class PreviewOptions:
    """The options of `action=preview`: which rows are shown."""

    rows: int = 4  # how many, of all sources in turn
    lines: list[int] | None = None  # those that come from these lines of their files; null: the first rows
    source: str | None = None  # of this source of data.sources alone
    heldout: bool = False  # of the held-out rows instead of the training rows

    def __post_init__(self) -> None:
        require(self.rows >= 0, "preview.rows", self.rows, "must be 0 or more; 0 shows counts alone.")
        valid = self.lines is None or (bool(self.lines) and min(self.lines) > 0)
        require(valid, "preview.lines", self.lines, "lines are counted from 1: preview.lines=[12,40].")


@dataclass
class Experiment:
    """The whole experiment."""

    name: str = "${method.name}-${model.name}"
    action: Action = Action.train
    beta: float | None = None  # null: the method's own; set, it goes to every method that has one
    plugin: str | None = None  # a module with methods of the user's own: docs/guides/extending.md
    plugin_sha256: str | None = None  # of its source; null: as the file is now
    model: Model = MISSING
    data: Data = MISSING
    method: Method = MISSING
    parallel: Parallel = MISSING
    training: Training = MISSING
    tracking: Tracking = MISSING
    eval: Eval = MISSING
    plan: PlanOptions = field(default_factory=PlanOptions)
    preview: PreviewOptions = field(default_factory=PreviewOptions)

    def __post_init__(self) -> None:
        self.name = redact(self.name)  # it is printed, and names a directory
        require(
            "/" not in self.name and self.name not in ("", ".", ".."),
            "name",
            self.name,
            "it names a directory: give a name without '/'.",
        )
        _check_pairs(self)

    @property
    def run_id(self) -> str:
        """Twelve hex digits from every setting that can change a trained number, wherever it runs."""
        return identity(to_plain(self))


def _check_pairs(spec: Experiment) -> None:
    """Refuse settings that are valid alone and exclude each other."""
    on_cpu = spec.parallel.device is DeviceType.cpu
    require(
        not (on_cpu and spec.model.attention is Attention.flash_attention_2),
        "model.attention",
        "flash_attention_2",
        "needs CUDA, and parallel.device=cpu; use model.attention=sdpa.",
    )
    require(
        spec.model.dtype is not Dtype.float16,
        "model.dtype",
        "float16",
        "full training in float16 overflows; use bfloat16, or float32 where there is no bf16.",
    )
    require(
        spec.model.init_adapter is None or spec.parallel.adapter is not Adapter.none,
        "model.init_adapter",
        spec.model.init_adapter,
        "an adapter is trained as an adapter; use parallel=lora, or merge it first and give model.path.",
    )
    require(
        not spec.data.streaming or spec.training.max_steps > 0,
        "data.streaming",
        "true",
        "the number of rows follows from the number of steps; set it: training.max_steps=1000.",
    )
    processes = (spec.parallel.processes or 1) * spec.parallel.nodes
    require(
        spec.training.global_batch >= processes,
        "training.global_batch",
        spec.training.global_batch,
        f"{processes} processes need a row each at every step; raise it, or use fewer processes.",
    )
    require(
        spec.training.eval_steps is None or spec.eval.rows > 0,
        "training.eval_steps",
        spec.training.eval_steps,
        "there is nothing to evaluate while eval.rows=0; set eval.rows, or training.eval_steps=null.",
    )
    of_language_models = [each.name for each in spec.eval.after if each is not Measure.preference]
    require(
        spec.method.generates or not of_language_models,
        "eval.after",
        f"[{','.join(of_language_models)}]",
        f"method={spec.method.name} trains a model that scores answers and writes none; "
        "eval.after=[preference] measures it.",
    )
    check_objective(spec)


def known_keys() -> list[str]:
    """Every dotted key that an experiment can have, whatever its groups: `training`, `training.seed`."""
    schemas = [("", Experiment), *GROUPS.items(), *_method_schemas()]
    keys = {group for group, _ in schemas if group}
    for group, schema in [*schemas, ("model.shape", Shape)]:
        defaults = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.structured(schema)))
        keys.update(*map(prefixes, flatten(defaults, f"{group}." if group else "")))
    return sorted(keys)


def _method_schemas() -> list[tuple[str, type[Method]]]:
    """The schemas of the group `method`, those of loaded plugins included."""
    plugged = [method.schema for plugin in loaded_plugins() for method in plugin.methods.values()]
    return [("method", schema) for schema in [*METHOD_SCHEMAS.values(), *plugged]]


@cache
def register_schemas() -> None:
    """Register every schema with Hydra, once; under `schema/`, so that lists show real options alone."""
    store = ConfigStore.instance()
    store.store(group="schema", name="experiment", node=Experiment)
    for name, schema in METHOD_SCHEMAS.items():
        store.store(group="schema/method", name=name, node=schema)
    # A plugin's settings are unknown until its module is loaded: any are taken here, to_schema checks them.
    any_settings = OmegaConf.structured(PluginMethod, flags={"struct": False})
    store.store(group="schema/method", name="plugin", node=any_settings)
    for name, schema in GROUPS.items():
        store.store(group="schema", name=name, node=schema)
    store.store(group="schema/data", name="source", node=Source)


def parse(config: DictConfig) -> Experiment:
    """The experiment that Hydra composed, checked.

    Raises SpecError with one sentence for a value out of range, a bad pair, or a `beta` that the method
    does not have; OmegaConf's own errors for a key that does not exist or a value of another type.
    """
    return build_experiment(to_schema(config))


def to_schema(config: DictConfig) -> DictConfig:
    """What was composed, in the schema of an experiment; raises as `parse` does.

    A plugin that does not define the chosen method is loaded and left out: it is no part of the experiment.
    """
    if "method" not in config and not OmegaConf.is_missing(config, "method"):
        primary = next((file for file in last_read() if "/" not in file.name), "the configuration")
        raise SpecError(
            f"{primary}: it lacks `defaults: [config, _self_]`, the lab's own settings to build on."
        )
    name = config.method.name
    plugin = load_plugin(config.plugin, config.get("plugin_sha256")) if config.get("plugin") else None
    plugin = plugin if plugin and name in plugin.methods else None
    if OmegaConf.get_type(config, "method") is Method and (file := method_without_schema()):
        raise SpecError(f"{file}: {LACKS_SCHEMA}")
    schema = plugin.methods[name].schema if plugin else METHOD_SCHEMAS.get(name)
    composed_type = OmegaConf.get_type(config, "method")
    require(
        schema is not None or composed_type is not PluginMethod,
        "method.name",
        name,
        "no loaded module defines this method; give plugin=FILE.py, whose METHODS has it.",
    )
    require(
        schema is not None,
        "method.name",
        name,
        f"it says which method this is: leave it as it was, one of {', '.join(METHOD_SCHEMAS)}.",
    )
    require(
        composed_type in (PluginMethod if plugin else schema, dict),
        "method.name",
        name,
        f"the method's other settings are not its own; choose it with method={name}.",
    )
    typed = OmegaConf.structured(Experiment)
    typed.method = OmegaConf.structured(schema)
    plain = OmegaConf.to_container(config)  # as plain data: what `+key=value` slipped in is no key here
    assert isinstance(plain, dict)
    if plugin:
        merge_method_settings(typed, plain.pop("method"))
    typed.merge_with(plain)
    typed.plugin, typed.plugin_sha256 = (plugin.reference, plugin.sha256) if plugin else (None, None)
    return typed


def build_experiment(typed: DictConfig) -> Experiment:
    """The experiment of a typed configuration, which is changed in place; raises as `parse` does."""
    if typed.beta is not None:
        if "beta" not in typed.method:
            raise SpecError(
                f"beta={typed.beta}: method={typed.method.name} has no beta; "
                f"leave it out, or use one of: {', '.join(_methods_with_beta())}."
            )
        typed.method.beta, typed.beta = typed.beta, None
    spec = OmegaConf.to_object(typed)
    assert isinstance(spec, Experiment)
    return spec


def _methods_with_beta() -> list[str]:
    return [
        name for name, schema in METHOD_SCHEMAS.items() if any(key.name == "beta" for key in fields(schema))
    ]


def to_plain(spec: Experiment) -> dict[str, Any]:
    """The experiment as plain dictionaries, lists, strings and numbers; enums by name, secrets redacted."""
    # before enums become strings that may equal somebody's password
    settings = redact_data(_to_containers(spec))
    settings["method"]["name"] = spec.method.name
    plain = _name_enums(settings)
    assert isinstance(plain, dict)
    return plain


def _to_containers(value: Any, annotation: str = "") -> Any:
    """Dataclasses as dictionaries; an int in a field of floats becomes a float.

    Faster than `dataclasses.asdict` and OmegaConf: a sweep of a thousand cells waits for it.
    """
    if is_dataclass(value):
        return {
            field.name: _to_containers(getattr(value, field.name), str(field.type)) for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _to_containers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_containers(item) for item in value]
    return float(value) if type(value) is int and annotation.startswith("float") else value


def _name_enums(value: Any) -> Any:
    """Enums by their names."""
    if isinstance(value, dict):
        return {key: _name_enums(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_name_enums(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def from_yaml(text: str) -> Experiment:
    """The experiment that `to_yaml` wrote."""
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    return parse(OmegaConf.masked_copy(config, [str(key) for key in config if key != "defaults"]))


def to_yaml(spec: Experiment) -> str:
    """spec.yaml: composes by itself with `--config-path RUN --config-name spec`."""
    defaults = [
        "/schema/experiment@_here_",
        f"/schema/method/{'plugin' if spec.plugin else spec.method.name}@method",
        {"hydra": "lab"},
        "_self_",
    ]
    header = (
        f"# {spec.name}, id {spec.run_id}. Again: {typed_command()} --config-path RUN --config-name spec\n"
    )
    return header + OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults, **to_plain(spec)}))
