"""The losses as a trainer binds them: `objectives.dpo(policy, reference, beta=0.1)`; what is not given is the
schema's default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from alignment_lab import config, losses
from alignment_lab.losses import PairLoss
from alignment_lab.methods.preference import bind_loss

PAIRWISE = [name for name, schema in config.METHOD_SCHEMAS.items() if issubclass(schema, config.Pairwise)]
kto = partial(losses.kto, desirable_weight=1.0, undesirable_weight=1.0)
reward = partial(losses.bradley_terry, margin=0.0, centering=0.0)


def bind_method_loss(name: str, **settings: Any) -> Callable[..., PairLoss]:
    """The loss of a method with these settings."""
    return bind_loss(config.METHOD_SCHEMAS[name](**settings))  # type: ignore[arg-type]


def _objective(name: str) -> Callable[..., PairLoss]:
    def loss(*models: Any, **settings: Any) -> PairLoss:
        return bind_method_loss(name, **settings)(*models)

    loss.__name__ = name
    return loss


objectives = SimpleNamespace(**{name: _objective(name) for name in PAIRWISE})
