"""Whether two training runs computed the same thing. A time counts only where they did.

Both sides in float32: every step's loss (and the log-probabilities, where both log them) to 1e-3. Each timed
pair as it ran: the losses, and DPO's log-probabilities, to 2e-2; where a side computes in bfloat16, as TRL is
shipped, losses after the first update to 1e-1: a preference loss is a difference of long sums, and the
bfloat16 rounding error of each sum is as large as an early margin. Where the sides estimate KTO's KL over
different mismatched answers, its losses are compared at the first step, where policy and reference are equal
and the KL is 0, and its rewards at the second, which follow from that first gradient without a KL. Where the
lab's rows hold the mismatched answers, TRL gets the same ones, and every step is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

Log = dict[str, float]
FLOAT32_TOLERANCE, TIMED_TOLERANCE, BFLOAT16_TOLERANCE, REWARD_TOLERANCE = 1e-3, 2e-2, 1e-1, 2e-2  # relative
ABSOLUTE_TOLERANCE = 2e-5  # the difference of two float32 sums over hundreds of tokens, times beta

LOGPS = ("logps/chosen", "logps/rejected")


@dataclass(frozen=True)
class Comparison:
    """The worst difference over some logged values and steps."""

    holds: bool
    worst: float  # relative
    where: str
    values: str  # what was compared

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON."""
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
) -> Comparison:
    """Compare the values that both sides log at these steps; different numbers of steps are a difference."""
    if len(ours) != len(theirs) or not ours:
        return Comparison(False, inf, f"{len(ours)} steps against {len(theirs)}", "the number of steps")
    pairs = list(enumerate(zip(ours, theirs, strict=True), start=1))[steps]
    differences = [
        (
            _relative_difference(ours_log[key], theirs_log[key]),
            _is_close(ours_log[key], theirs_log[key], tolerance),
            f"{key} at step {step}: {ours_log[key]:.6g} and {theirs_log[key]:.6g}",
        )
        for step, (ours_log, theirs_log) in pairs
        for key in keys
        if key in ours_log and key in theirs_log
    ]
    compared_values = (
        f"{', '.join(key for key in keys if key in ours[0] and key in theirs[0])} of {len(pairs)} steps"
    )
    worst, _, where = max(differences, default=(inf, False, "nothing in common"))
    return Comparison(
        bool(differences) and all(is_close for _, is_close, _ in differences), worst, where, compared_values
    )


def _is_close(ours: float, theirs: float, tolerance: float) -> bool:
    return (
        isfinite(ours)
        and isfinite(theirs)
        and abs(ours - theirs) <= tolerance * max(abs(ours), abs(theirs)) + ABSOLUTE_TOLERANCE
    )


def _relative_difference(ours: float, theirs: float) -> float:
    """The relative difference; infinite where either value is not finite."""
    if not (isfinite(ours) and isfinite(theirs)):
        return inf
    return abs(ours - theirs) / max(abs(ours), abs(theirs), ABSOLUTE_TOLERANCE)


def compare_float32(
    method: str, ours: Sequence[Log], theirs: Sequence[Log], *, same_kl: bool = False
) -> list[Comparison]:
    """The comparison of two float32 runs. `same_kl`: both sides have the same mismatched answers."""
    if method != "kto" or same_kl:
        return [
            compare(
                ours, theirs, ("loss", *LOGPS) if method in ("dpo", "kto") else ("loss",), FLOAT32_TOLERANCE
            )
        ]
    first_step = compare(ours, theirs, ("loss", *LOGPS), FLOAT32_TOLERANCE, slice(0, 1))
    rewards = ("rewards/chosen", "rewards/rejected")
    return (
        [first_step, compare(ours, theirs, rewards, REWARD_TOLERANCE, slice(1, 2))]
        if len(ours) > 1
        else [first_step]
    )


def compare_timed(
    method: str, ours: Sequence[Log], theirs: Sequence[Log], *, is_bfloat16: bool = False
) -> list[Comparison]:
    """The comparison of a timed pair. `is_bfloat16`: a side computes in bfloat16."""
    logps = LOGPS if method == "dpo" else ()
    if not is_bfloat16:
        return [compare(ours, theirs, ("loss", *logps), TIMED_TOLERANCE)]
    first_step, later_steps = slice(0, 1), slice(1, None)
    comparisons = [compare(ours, theirs, ("loss", *logps), TIMED_TOLERANCE, first_step)]
    if len(ours) > 1:
        comparisons.append(compare(ours, theirs, ("loss",), BFLOAT16_TOLERANCE, later_steps))
    if len(ours) > 1 and logps:
        comparisons.append(compare(ours, theirs, logps, TIMED_TOLERANCE, later_steps))
    return comparisons


def compare_timed_runs(method: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    """`compare_timed` of the results of two measured processes, as JSON."""
    is_bfloat16 = "bfloat16" in ours["notes"]["dtype"] or theirs["notes"]["bf16"]
    return [
        comparison.to_json()
        for comparison in compare_timed(method, ours["logs"], theirs["logs"], is_bfloat16=is_bfloat16)
    ]
