"""The table of metrics: what each is called, which way is better, and what it may be compared across.

The trainer, the objective of a search, the report, the trackers and the before/after table read it.
Names are TRL's, and mean for each method what its trainer of TRL means by them. TRL's rewards differ between
methods, so the rows of `IMPLICIT` stand beside them: one yardstick for all. A metric of held-out rows has
`eval_` in front and is the same metric. To add one, add a row here and name it in the `metrics` of the
methods that compute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Direction = Enum("Direction", ["minimize", "maximize"])
Scale = Enum(
    "Scale",
    [
        "common",  # means the same for every method and beta
        "tokenizer",  # comparable where the tokenizer is the same: log-probabilities
        # defined by its method, on the scale of its beta and its tokenizer: losses, rewards, margins
        "method",
    ],
)
EVAL = "eval_"  # in front of the name of a metric of held-out rows
ANSWERS = "answers/"  # in front of what is counted in generated answers
# in front of DPO's implicit reward without beta, log pi(answer) - log pi_initial(answer) in nats
IMPLICIT = "implicit_rewards/"


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    label: str  # for a reader who does not know the name
    direction: Direction = Direction.maximize
    is_share: bool = False  # the mean of zeros and ones
    scale: Scale = Scale.common


_MIN = Direction.minimize
_SUMMARY = (  # what every table has a column for, in the order in which readers ask for it
    Metric("answers/correct", "answers with the right fact", is_share=True),
    Metric(f"{IMPLICIT}accuracies", "preferred answer ranked higher", is_share=True),
    Metric("accuracy", "preferred answer ranked higher", is_share=True),
    Metric("mean_token_accuracy", "token accuracy", is_share=True, scale=Scale.tokenizer),
    Metric("loss", "loss", _MIN, scale=Scale.method),
    Metric(f"{IMPLICIT}margins", "implicit reward margin", scale=Scale.tokenizer),
    Metric("margin", "score margin", scale=Scale.method),
    Metric("answers/one_sentence", "answers of one sentence", is_share=True),
    Metric("answers/words", "words per answer", _MIN),
)
_DETAILS = (  # what pages and files have as well
    Metric("nll_loss", "negative log-likelihood per token", _MIN, scale=Scale.method),
    Metric(f"{IMPLICIT}chosen", "implicit reward of the chosen answer", scale=Scale.tokenizer),
    Metric(f"{IMPLICIT}rejected", "implicit reward of the rejected answer", _MIN, scale=Scale.tokenizer),
    Metric(
        "rewards/accuracies",
        "preferred answer ranked higher, by the method's own reward",
        is_share=True,
        scale=Scale.method,
    ),
    Metric("rewards/margins", "reward margin", scale=Scale.method),
    Metric("rewards/chosen", "reward of the chosen answer", scale=Scale.method),
    Metric("rewards/rejected", "reward of the rejected answer", _MIN, scale=Scale.method),
    Metric("mean_reward", "mean score", scale=Scale.method),
    Metric("logps/chosen", "log-probability of the chosen answer", scale=Scale.method),
    Metric("logps/rejected", "log-probability of the rejected answer", _MIN, scale=Scale.method),
    Metric("kl", "KL from the reference, as KTO estimates it", _MIN, scale=Scale.method),
    Metric("shift", "BCO's shift", scale=Scale.method),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_SUMMARY, *_DETAILS)}
SUMMARY_METRICS = tuple(metric.name for metric in _SUMMARY)


def metric(name: str) -> Metric:
    """The row of a metric, of held-out rows (`eval_loss`) or not.

    A metric that the table lacks is better when it is higher and means the same everywhere, unless its name
    ends in `loss`.
    """
    if name.removeprefix(EVAL) in METRICS:
        return METRICS[name.removeprefix(EVAL)]
    return Metric(name, name, _MIN, scale=Scale.method) if name.endswith("loss") else Metric(name, name)
