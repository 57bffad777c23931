"""Whether two training runs computed the same thing. A time is believed only where they did.

Strict, in float32 on both sides: every step's loss (and the log-probabilities, where both log them) to 1e-3. Loose, of each timed pair as
it ran (TRL as shipped computes in bfloat16): the losses to 2e-2. KTO's KL is estimated over other mismatched answers on each side, so its
losses are compared at the first step, where policy and reference are equal and the KL is 0, and then its rewards at the second, which
come of that first, KL-free gradient; where the lab names its mismatched answers TRL is given the same, and every step is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Log = dict[str, float]
STRICT, LOOSE, REWARDS = 1e-3, 2e-2, 2e-2  # relative
FLOOR = 2e-5  # what two float32 sums over hundreds of tokens may differ by, times beta

LOGPS = ("logps/chosen", "logps/rejected")


@dataclass(frozen=True)
class Compared:
    """The worst disagreement over some logged values and steps."""

    holds: bool
    worst: float  # relative
    where: str
    values: str  # what was compared

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"holds": self.holds, "worst": float(f"{self.worst:.3g}"), "where": self.where, "compared": self.values}


def compare(ours: Sequence[Log], theirs: Sequence[Log], keys: Iterable[str], tolerance: float, steps: slice = slice(None)) -> Compared:
    """Values that both sides log, at these steps; not even as many steps is a disagreement too."""
    if len(ours) != len(theirs) or not ours:
        return Compared(False, float("inf"), f"{len(ours)} steps against {len(theirs)}", "the number of steps")
    pairs = list(enumerate(zip(ours, theirs, strict=True), start=1))[steps]
    found = [
        (_apart(one[key], other[key]), f"{key} at step {step}: {one[key]:.6g} against {other[key]:.6g}")
        for step, (one, other) in pairs
        for key in keys
        if key in one and key in other
    ]
    said = f"{', '.join(key for key in keys if key in ours[0] and key in theirs[0])} of {len(pairs)} steps"
    worst, where = max(found, default=(float("inf"), "nothing in common"))
    return Compared(worst <= tolerance, worst, where, said)


def _apart(one: float, other: float) -> float:
    """The relative difference; infinite where either is no number."""
    if one == other:
        return 0.0
    apart = max(0.0, abs(one - other) - FLOOR) / max(abs(one), abs(other))
    return apart if apart == apart else float("inf")


def strict(method: str, ours: Sequence[Log], theirs: Sequence[Log], *, same_kl: bool = False) -> list[Compared]:
    """The comparison of two float32 runs."""
    if method != "kto" or same_kl:
        return [compare(ours, theirs, ("loss", *LOGPS) if method in ("dpo", "kto") else ("loss",), STRICT)]
    first = compare(ours, theirs, ("loss", *LOGPS), STRICT, slice(0, 1))
    rewards = ("rewards/chosen", "rewards/rejected")
    return [first, compare(ours, theirs, rewards, REWARDS, slice(1, 2))] if len(ours) > 1 else [first]


def loose(ours: Sequence[Log], theirs: Sequence[Log]) -> Compared:
    """The comparison of a timed pair."""
    return compare(ours, theirs, ("loss",), LOOSE)
