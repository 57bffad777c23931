"""Differences between models on the same prompts: paired, with the interval of the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.study import crossed, stats
from ..runtime.cluster_means import influence, sum_by_prompt
from .intervals import Scores


def differences(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """ours - theirs of each metric that both have, over the prompts that both have: `value`, `ci95`, `p` and
    the number of `prompts`. One that has fewer than two prompts, or none, is left out.
    """
    found = {name: difference(ours[name], theirs[name]) for name in ours if name in theirs}
    return {name: each for name, each in found.items() if each is not None}


def difference(ours: Scores, theirs: Scores) -> dict[str, Any] | None:
    """ours - theirs; None where fewer than two prompts are shared. p is that of an exact sign test where each
    prompt has one row, right or wrong; else Student's, over prompts.
    """
    if ours.prompts is None or theirs.prompts is None:
        return None
    known = set(map(str, theirs.prompts))
    shared = [prompt for prompt in dict.fromkeys(map(str, ours.prompts)) if prompt in known]
    if len(shared) < 2:
        return None
    mine, other = _sums(ours, shared), _sums(theirs, shared)
    samples = [crossed.seed_sample([influence(*each)], tuple(shared)) for each in (mine, other)]
    estimate = crossed.difference_over_prompts(*samples)
    bounds = list(estimate.ci95) if estimate.ci95 else None
    if ours.share and not ours.weights and bounds:
        bounds = [max(-1.0, bounds[0]), min(1.0, bounds[1])]
    p = estimate.p
    changes = (mine[0] - other[0]).tolist()
    if (
        all((each[1] == 1).all() for each in (mine, other))
        and set(changes) <= {-1.0, 0.0, 1.0}
        and ours.share
    ):
        p = stats.sign_test(changes)
    return {"value": estimate.value, "ci95": bounds, "p": p, "prompts": len(shared)}


def _sums(scores: Scores, shared: Sequence[str]) -> tuple[Any, Any]:
    """Sums of values and of weights by prompt, in the order of `shared`."""
    places = {prompt: place for place, prompt in enumerate(shared)}
    rows = [
        (places[str(prompt)], index)
        for index, prompt in enumerate(scores.prompts or ())
        if str(prompt) in places
    ]
    prompts = [place for place, _ in rows]
    values = [scores.values[index] for _, index in rows]
    weights = [scores.weights[index] for _, index in rows] if scores.weights else None
    return sum_by_prompt(prompts, values, weights, len(shared))
