"""One experiment, whole: what cannot stand together, how Hydra knows it, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ..runtime.redaction import redact, redacted
from .dotted import flatten, prefixes
from .groups import (
    GROUPS,
    Adapter,
    Attention,
    Data,
    DeviceType,
    Dtype,
    Eval,
    Model,
    Parallel,
    Shape,
    Tracking,
    Training,
)
from .identity import identity
from .methods import METHOD_SCHEMAS, Method
from .objective import check_objective
from .validation import SpecError, require

Action = Enum("Action", ["train", "plan"])


@dataclass
class PlanOptions:
    """What `action=plan` is asked."""

    device: str | None = None  # a name in estimate.DEVICES; null: those of this machine, else every known one


@dataclass
class Experiment:
    """One experiment, whole."""

    name: str = "${method.name}-${model.name}"
    action: Action = Action.train
    beta: float | None = None  # null: the method's own; set, it goes to every method that has one
    model: Model = MISSING
    data: Data = MISSING
    method: Method = MISSING
    parallel: Parallel = MISSING
    training: Training = MISSING
    tracking: Tracking = MISSING
    eval: Eval = MISSING
    plan: PlanOptions = field(default_factory=PlanOptions)

    def __post_init__(self) -> None:
        self.name = redact(self.name)  # it is printed, and names a directory
        require(
            "/" not in self.name and self.name not in ("", ".", ".."),
            "name",
            self.name,
            "it names a directory: leave out '/'.",
        )
        if self.training.learning_rate is None:
            self.training.learning_rate = self.method.usual_learning_rate
        _check_pairs(self)

    @property
    def run_id(self) -> str:
        """Twelve hex digits from all that can change a trained number: the same experiment has the same id wherever it runs."""
        return identity(to_plain(self))


def _check_pairs(spec: Experiment) -> None:
    """Settings that are fine alone and wrong together."""
    cpu = spec.parallel.device is DeviceType.cpu
    require(
        not (cpu and spec.model.attention is Attention.flash_attention_2),
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
        "an adapter goes on as an adapter; use parallel=lora, or merge it first and give model.path.",
    )
    require(
        not spec.data.streaming or spec.training.max_steps > 0,
        "data.streaming",
        "true",
        "how many rows are read follows from the steps; say how many steps: training.max_steps=1000.",
    )
    wanted = (spec.parallel.processes or 1) * spec.parallel.nodes
    require(
        spec.training.global_batch >= wanted,
        "training.global_batch",
        spec.training.global_batch,
        f"{wanted} processes want a row each at every step; raise it, or ask for fewer processes.",
    )
    require(
        spec.training.eval_steps is None or spec.eval.rows > 0,
        "training.eval_steps",
        spec.training.eval_steps,
        "there is nothing to evaluate while eval.rows=0; set eval.rows, or training.eval_steps=null.",
    )
    check_objective(spec)


def known_keys() -> list[str]:
    """Every dotted key that an experiment can have, whatever its groups; `training` and `training.seed` both."""
    schemas = [("", Experiment), *GROUPS.items(), *(("method", schema) for schema in METHOD_SCHEMAS.values())]
    keys = {group for group, _ in schemas if group}
    for group, schema in [*schemas, ("model.shape", Shape)]:
        defaults = OmegaConf.to_container(OmegaConf.structured(schema))
        assert isinstance(defaults, dict)
        keys.update(*map(prefixes, flatten(defaults, f"{group}." if group else "")))
    return sorted(keys)


def register_schemas() -> None:
    """Make every schema known to Hydra, under `schema/` so that only real options are listed to users."""
    store = ConfigStore.instance()
    store.store(group="schema", name="experiment", node=Experiment)
    for name, schema in METHOD_SCHEMAS.items():
        store.store(group="schema/method", name=name, node=schema)
    for name, schema in GROUPS.items():
        store.store(group="schema", name=name, node=schema)


def parse(config: DictConfig) -> Experiment:
    """The experiment that Hydra composed, checked.

    Raises SpecError with one sentence for a value out of range, a bad pair, or a `beta` that the method does not have;
    OmegaConf's own errors for a key that does not exist or a value of another type.
    """
    return build_experiment(to_schema(config))


def to_schema(config: DictConfig) -> DictConfig:
    """What was composed, in the schema of an experiment; raises as `parse` does."""
    name = config.method.name
    require(
        name in METHOD_SCHEMAS,
        "method.name",
        name,
        f"it says which method this is: leave it as it was, one of {', '.join(METHOD_SCHEMAS)}.",
    )
    composed = OmegaConf.get_type(config, "method")
    require(
        composed in (METHOD_SCHEMAS[name], dict),
        "method.name",
        name,
        f"the method's other settings are not its own; choose it with method={name}.",
    )
    found = OmegaConf.structured(Experiment)
    found.method = OmegaConf.structured(METHOD_SCHEMAS[name])
    found.merge_with(
        OmegaConf.to_container(config)
    )  # as plain data: what `+key=value` slipped in is no key here
    return found


def build_experiment(typed: DictConfig) -> Experiment:
    """The experiment of such a configuration, which is changed; raises as `parse` does."""
    if typed.beta is not None:
        if "beta" not in typed.method:
            raise SpecError(
                f"beta={typed.beta}: method={typed.method.name} has no beta; leave it out, or use one of: {_with_beta()}."
            )
        typed.method.beta, typed.beta = typed.beta, None
    spec = OmegaConf.to_object(typed)
    assert isinstance(spec, Experiment)
    return spec


def _with_beta() -> str:
    return ", ".join(
        name for name, schema in METHOD_SCHEMAS.items() if any(f.name == "beta" for f in fields(schema))
    )


def to_plain(spec: Experiment) -> dict[str, Any]:
    """The experiment as plain dictionaries, lists, strings and numbers; enums by name, and no secret in it."""
    known = redacted(_fields(spec))  # before enums become words that somebody has for a password
    known["method"]["name"] = spec.method.name
    plain = _named(known)
    assert isinstance(plain, dict)
    return plain


def _fields(value: Any, kind: str = "") -> Any:
    """Dataclasses as dictionaries, by hand: a sweep of a thousand cells waits for it. An int in a float's place becomes one."""
    if is_dataclass(value):
        return {field.name: _fields(getattr(value, field.name), str(field.type)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _fields(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_fields(one) for one in value]
    return float(value) if type(value) is int and kind.startswith("float") else value


def _named(value: Any) -> Any:
    """Enums by their names."""
    if isinstance(value, dict):
        return {key: _named(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_named(one) for one in value]
    return value.name if isinstance(value, Enum) else value


def from_yaml(text: str) -> Experiment:
    """The experiment that `to_yaml` wrote."""
    plain = OmegaConf.create(text)
    assert isinstance(plain, DictConfig)
    return parse(OmegaConf.masked_copy(plain, [str(key) for key in plain if key != "defaults"]))


def to_yaml(spec: Experiment) -> str:
    """spec.yaml: composes by itself with `--config-path RUN --config-name spec`."""
    defaults = [
        "/schema/experiment@_here_",
        f"/schema/method/{spec.method.name}@method",
        {"hydra": "lab"},
        "_self_",
    ]
    header = f"# {spec.name}, id {spec.run_id}. Again: python train.py --config-path RUN --config-name spec\n"
    return header + OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults, **to_plain(spec)}))
