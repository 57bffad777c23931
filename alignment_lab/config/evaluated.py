"""Whether an evaluation takes the rows of the command line, or those of the first run that it evaluates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .experiment import Experiment

CHOOSES_DATA = re.compile(r"[+~]*data(=|[./@])")  # an override: of the group, of a key in it, of a source


def settle_rows(spec: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with eval.own_data set where it was null: whether no override chooses data."""
    if spec.action.name == "evaluate" and spec.eval.own_data is None:
        spec.eval.own_data = not any(CHOOSES_DATA.match(override) for override in overrides)
    return spec
