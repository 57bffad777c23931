"""Plugins for tests: a method of a user's own, as docs/guides/extending.md shows it, and its option file."""

from __future__ import annotations

from pathlib import Path

PLUGIN = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment_lab.config import Referenced, SpecError
from alignment_lab.config.plugins import MethodPlugin

if TYPE_CHECKING:
    from alignment_lab.losses import PairLogprobs, PairLoss


@dataclass
class Tilted(Referenced):
    """DPO with a shifted margin; tilt=0 is DPO."""

    name: str = "tilted"
    tilt: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tilt < 0:
            raise SpecError(f"method.tilt={self.tilt}: must be 0 or more.")


def tilted(policy: PairLogprobs, reference: PairLogprobs, *, beta: float, tilt: float) -> PairLoss:
    from torch.nn import functional as F

    from alignment_lab.losses import PairLoss

    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    losses = -F.logsigmoid(beta * (chosen - rejected) - tilt)
    return PairLoss(losses, beta * chosen.detach(), beta * rejected.detach())


METHODS = {"tilted": MethodPlugin(schema=Tilted, loss=tilted)}
'''
OPTION = """# @package _global_
# DPO with a shifted margin.  alignment-lab --config-dir options method=tilted
defaults: [/schema/method/plugin@method, _self_]
plugin: tilted.py
training: {learning_rate: 1e-6}
method:
  name: tilted
  beta: 0.1
"""


def write_plugin(folder: Path, source: str = PLUGIN) -> Path:
    """tilted.py and options/method/tilted.yaml in this folder, which is to be the working directory."""
    (folder / "options" / "method").mkdir(parents=True, exist_ok=True)
    (folder / "options" / "method" / "tilted.yaml").write_text(OPTION)
    (folder / "tilted.py").write_text(source)
    return folder / "tilted.py"
