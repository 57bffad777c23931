"""The learning rate of an adapter: a method's option sets that of all weights, and an adapter needs more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from ..runtime.paths import CONF
from .groups import Adapter

if TYPE_CHECKING:
    from .experiment import Experiment

# Between TRL's examples without and with LoRA: 2e-5 and 2e-4 for SFT, 5e-7 and 5e-6 for DPO. So are Zephyr's.
FACTOR = 10


def describe_adapter_rate(spec: Experiment) -> str:
    """What to set where an adapter is trained at the method's own rate; "" where there is nothing to say.

    The rate is not raised unasked: runs with and without an adapter are compared at the rate that they name.
    """
    rate, option = spec.training.learning_rate, CONF / "method" / f"{spec.method.name}.yaml"
    if spec.parallel.adapter is Adapter.none or not option.is_file():
        return ""
    if rate != float((yaml.safe_load(option.read_text()).get("training") or {}).get("learning_rate", "nan")):
        return ""
    return (
        f"training.learning_rate={rate:g} is what method={spec.method.name} has for training all weights; "
        f"for an adapter about {FACTOR} times as much is usual: training.learning_rate={FACTOR * rate:g}"
    )
