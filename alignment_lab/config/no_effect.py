"""Settings that were given and have no effect beside the others: told, so that nobody counts on them.

None of them is refused: a sweep may vary what one of its cells does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .groups import Adapter, Duplicates, Measure, OnNonfinite, Overlap, Scheduler
from .groups.winrate import OF_KIND
from .methods import Divergence, Divergent, Format

if TYPE_CHECKING:
    from .experiment import Experiment


def describe_no_effect(spec: Experiment) -> str:
    """The settings other than their defaults that change nothing, with the reason; "" where there is none."""
    told = [
        f"{', '.join(changed)} ({reason})"
        for group, names, reason in _without_effect(spec)
        if (changed := [text for name in names if (text := _changed(group, attrgetter(group)(spec), name))])
    ]
    return f"no effect: {'; '.join(told)}" if told else ""


def _without_effect(spec: Experiment) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Group, settings of it, and why they change nothing."""
    if spec.action.name != "plan":
        yield "plan", ("device",), f"action={spec.action.name}"
    if spec.action.name != "preview":
        yield "preview", ("rows", "lines", "source", "heldout"), f"action={spec.action.name}"
    if spec.action.name != "evaluate":
        reason = f"action={spec.action.name}"
        yield "eval", ("models", "measures", "own_data"), reason
        if spec.action.name != "train":
            yield "eval", ("after",), reason
        unused = [] if spec.eval.after and spec.action.name == "train" else list(Measure)
        if unused:
            yield "eval", ("before", "reference"), f"{reason}, and eval.after=[]"
        for measure in unused:
            node = getattr(spec.eval, measure.name)
            yield f"eval.{measure.name}", tuple(field.name for field in fields(node)), reason
    else:
        yield "eval", ("after",), "it is what is measured after training"
    if Measure.winrate in (spec.eval.measures if spec.action.name == "evaluate" else spec.eval.after):
        kind = spec.eval.winrate.judge
        others = tuple(name for name, kinds in OF_KIND.items() if kind not in kinds)
        yield "eval.winrate", others, f"eval.winrate.judge={kind.name}"
    training, parallel, data, method = spec.training, spec.parallel, spec.data, spec.method
    if training.max_steps > 0:
        yield "training", ("num_train_epochs",), f"training.max_steps={training.max_steps} goes first"
    if training.lr_scheduler_type is Scheduler.constant:
        yield "training", ("warmup_steps",), "lr_scheduler_type=constant has none; constant_with_warmup has"
    if training.on_nonfinite is OnNonfinite.stop:
        yield "training", ("max_nonfinite",), "training.on_nonfinite=stop"
    if not training.push_to_hub:
        hub = ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision")
        yield "training", hub, "training.push_to_hub=false"
    if training.save_steps is None:
        yield "training", ("save_total_limit",), "training.save_steps=null"
    if parallel.adapter is Adapter.none:
        yield "parallel", ("rank", "alpha", "targets"), "parallel.adapter=none trains every weight"
    if isinstance(method, Divergent) and method.divergence is not Divergence.alpha:
        yield "method", ("divergence_alpha",), f"method.divergence={method.divergence.name}"
    if data.names_heldout():
        yield "data", ("eval_fraction",), "the held-out rows are named"
    if method.format is Format.text:
        yield "data", ("truncation",), f"method={method.name} splits a long text, and cuts nothing"
    if data.clean.duplicates is not Duplicates.near:
        yield "data.clean", ("threshold",), f"data.clean.duplicates={data.clean.duplicates.name}"
    if data.clean.overlap is Overlap.none and not data.clean.benchmarks:
        yield "data.clean", ("ngram",), "data.clean.overlap=none, and no data.clean.benchmarks"
    if not spec.eval.generations:
        yield "eval", ("max_new_tokens", "batch"), "eval.generations=0"


def _changed(group: str, settings: Any, name: str) -> str | None:
    """`group.name=value` where it is not the default of its schema."""
    assert is_dataclass(settings)
    setting = next(field for field in fields(settings) if field.name == name)
    default = setting.default if setting.default_factory is MISSING else setting.default_factory()
    value = getattr(settings, name)
    return None if value == default else f"{group}.{name}={_as_typed(value)}"


def _as_typed(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    return value.name if isinstance(value, Enum) else str(value)
