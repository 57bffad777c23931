"""Whether two training runs computed the same thing. A time is believed only where they did.

Strict, in float32 on both sides: every step's loss (and the log-probabilities, where both log them) to 1e-3. Loose, of each timed pair as
it ran: the losses, and DPO's log-probabilities, to 2e-2; where a side computes in bfloat16, as TRL is shipped, losses behind the first
update to 1e-1: a preference loss is a difference of long sums, and what bfloat16 rounds off each of them is as large as an early margin.
KTO's KL is estimated over other mismatched answers on each side, so its losses are compared at the first step, where policy and reference
are equal and the KL is 0, and then its rewards at the second, which come of that first, KL-free gradient; where the lab names its
mismatched answers, as it does, TRL is given the same, and every step is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

Log = dict[str, float]
STRICT, LOOSE, ROUGH, REWARDS = 1e-3, 2e-2, 1e-1, 2e-2  # relative
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
        return {
            "holds": self.holds,
            "worst": float(f"{self.worst:.3g}") if isfinite(self.worst) else None,
            "where": self.where,
            "compared": self.values,
        }


def compare(
    ours: Sequence[Log],
    theirs: Sequence[Log],
    keys: Iterable[str],
    tolerance: float,
    steps: slice = slice(None),
) -> Compared:
    """Values that both sides log, at these steps; not even as many steps is a disagreement too."""
    if len(ours) != len(theirs) or not ours:
        return Compared(False, inf, f"{len(ours)} steps against {len(theirs)}", "the number of steps")
    pairs = list(enumerate(zip(ours, theirs, strict=True), start=1))[steps]
    found = [
        (
            _apart(one[key], other[key]),
            _holds(one[key], other[key], tolerance),
            f"{key} at step {step}: {one[key]:.6g} and {other[key]:.6g}",
        )
        for step, (one, other) in pairs
        for key in keys
        if key in one and key in other
    ]
    said = f"{', '.join(key for key in keys if key in ours[0] and key in theirs[0])} of {len(pairs)} steps"
    worst, _, where = max(found, default=(inf, False, "nothing in common"))
    return Compared(bool(found) and all(holds for _, holds, _ in found), worst, where, said)


def _holds(one: float, other: float, tolerance: float) -> bool:
    return (
        isfinite(one)
        and isfinite(other)
        and abs(one - other) <= tolerance * max(abs(one), abs(other)) + FLOOR
    )


def _apart(one: float, other: float) -> float:
    """The relative difference; infinite where either is no finite number."""
    if not (isfinite(one) and isfinite(other)):
        return inf
    return abs(one - other) / max(abs(one), abs(other), FLOOR)


def strict(
    method: str, ours: Sequence[Log], theirs: Sequence[Log], *, same_kl: bool = False
) -> list[Compared]:
    """The comparison of two float32 runs."""
    if method != "kto" or same_kl:
        return [compare(ours, theirs, ("loss", *LOGPS) if method in ("dpo", "kto") else ("loss",), STRICT)]
    first = compare(ours, theirs, ("loss", *LOGPS), STRICT, slice(0, 1))
    rewards = ("rewards/chosen", "rewards/rejected")
    return [first, compare(ours, theirs, rewards, REWARDS, slice(1, 2))] if len(ours) > 1 else [first]


def loose(method: str, ours: Sequence[Log], theirs: Sequence[Log], *, rough: bool = False) -> list[Compared]:
    """The comparison of a timed pair; `rough` where a side computes in bfloat16."""
    logps = LOGPS if method == "dpo" else ()
    if not rough:
        return [compare(ours, theirs, ("loss", *logps), LOOSE)]
    first, later = slice(0, 1), slice(1, None)
    found = [compare(ours, theirs, ("loss", *logps), LOOSE, first)]
    if len(ours) > 1:
        found.append(compare(ours, theirs, ("loss",), ROUGH, later))
    if len(ours) > 1 and logps:
        found.append(compare(ours, theirs, logps, LOOSE, later))
    return found


def timed(method: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    """`loose` of what two measured processes gave, as JSON has it."""
    rough = "bfloat16" in ours["notes"]["dtype"] or theirs["notes"]["bf16"]
    return [one.plain() for one in loose(method, ours["logs"], theirs["logs"], rough=rough)]
