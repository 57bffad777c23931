"""Differences between two models on the same prompts: paired, with the interval of the difference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...config.metrics import metric
from ...runtime.cluster_means import influence, sum_by_prompt
from . import crossed, stats


class RowScores(Protocol):
    """A value for each row, with its prompt; with weights their mean is sum(values) / sum(weights)."""

    @property
    def values(self) -> list[float]:
        """One for each row."""

    @property
    def weights(self) -> list[float] | None:
        """None: every row weighs the same."""

    @property
    def prompts(self) -> Sequence[Hashable] | None:
        """None: which prompt a row has is not known."""


@dataclass(frozen=True)
class ReadScores:
    """One metric of row_scores.json."""

    values: list[float]
    weights: list[float] | None
    prompts: list[str]


def read_scores(content: Mapping[str, Any]) -> dict[str, ReadScores]:
    """The metrics of one model's row_scores."""
    digests = content["prompts"]
    return {
        name: ReadScores(each["values"], each.get("weights"), [digests[place] for place in each["prompts"]])
        for name, each in content["metrics"].items()
    }


def differences(ours: Mapping[str, RowScores], theirs: Mapping[str, RowScores]) -> dict[str, dict[str, Any]]:
    """ours - theirs of each metric that both have, over the prompts that both have: `value`, `ci95`, `p` and
    the number of `prompts`. One that shares fewer than two prompts is left out.
    """
    found = {
        name: difference(ours[name], theirs[name], is_share=metric(name).is_share)
        for name in ours
        if name in theirs
    }
    return {name: each for name, each in found.items() if each is not None}


def difference(ours: RowScores, theirs: RowScores, *, is_share: bool) -> dict[str, Any] | None:
    """ours - theirs; None where fewer than two prompts are shared.

    p is that of an exact sign test where each prompt has one row, right or wrong; else Student's, over
    prompts.
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
    if is_share and bounds:
        bounds = [max(-1.0, bounds[0]), min(1.0, bounds[1])]
    changes = (mine[0] - other[0]).tolist()
    one_each = all((weights == 1).all() for _, weights in (mine, other))
    is_signs = is_share and one_each and set(changes) <= {-1.0, 0.0, 1.0}
    p = stats.sign_test(changes) if is_signs else estimate.p
    return {"value": estimate.value, "ci95": bounds, "p": p, "prompts": len(shared)}


def _sums(scores: RowScores, shared: Sequence[str]) -> tuple[Any, Any]:
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
