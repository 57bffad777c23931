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
SAMPLED = "sampled/"  # in front of what is counted in answers that are drawn from a model, by action=evaluate


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
_EVALUATED = (  # what action=evaluate measures besides
    Metric(
        "length_matched_accuracies", "preferred answer ranked higher, of equally long ones", is_share=True
    ),
    Metric("brier", "Brier score of the preferences", _MIN),
    Metric("logps/accuracies", "preferred answer more likely", is_share=True),
    Metric("logps/accuracies_per_token", "preferred answer more likely, per token", is_share=True),
    Metric("text/nll_per_token", "negative log-likelihood of texts per token", _MIN, scale=Scale.tokenizer),
    Metric("text/bits_per_byte", "bits per byte of texts", _MIN),
    Metric(f"{SAMPLED}kl", "KL divergence from the reference, per answer", _MIN),
    Metric(
        f"{SAMPLED}kl_per_token", "KL divergence from the reference, per token", _MIN, scale=Scale.tokenizer
    ),
    Metric(f"{SAMPLED}correct", "sampled answers with the right fact", is_share=True),
    Metric(f"{SAMPLED}words", "words per sampled answer", _MIN),
    Metric(f"{SAMPLED}tokens", "tokens per sampled answer", _MIN, scale=Scale.tokenizer),
    Metric(f"{SAMPLED}one_sentence", "sampled answers of one sentence", is_share=True),
    Metric(f"{SAMPLED}finished", "sampled answers that end by themselves", is_share=True),
    Metric(f"{SAMPLED}empty", "sampled answers without a word", _MIN, is_share=True),
    Metric(f"{SAMPLED}repeated", "words of an answer in a repeated run of four", _MIN, is_share=True),
    Metric(f"{SAMPLED}lists", "sampled answers with a list", is_share=True),
    Metric(f"{SAMPLED}code", "sampled answers with code", is_share=True),
    Metric(f"{SAMPLED}refusals", "sampled answers that begin like a refusal", _MIN, is_share=True),
    Metric("winrate", "win rate over the baseline", is_share=True),
    # a name of its own: wherever the figure goes, what it is worth goes along
    Metric("winrate/judge_failed", "win rate, by a judge that FAILED its trial", is_share=True),
)
_BENCHMARKS = (  # of other packages; the names of lm-eval's are its own
    Metric("ifbench/prompt_strict", "IFBench: prompts of which every instruction is followed", is_share=True),
    Metric("ifbench/instruction_strict", "IFBench: instructions followed", is_share=True),
    Metric("ifbench/prompt_loose", "IFBench: the same, whatever frames the answer", is_share=True),
    Metric("ifbench/instruction_loose", "IFBench: the same, whatever frames the answer", is_share=True),
    Metric("mt_bench/score", "MT-Bench: its judge's score, 1 to 10"),
    Metric("mt_bench/score/turn_1", "MT-Bench: score of the first turn"),
    Metric("mt_bench/score/turn_2", "MT-Bench: score of the second turn"),
    Metric("mt_bench/win_rate", "MT-Bench: pairs that its judge prefers", is_share=True),
    Metric("alpaca_eval/win_rate", "AlpacaEval: its judge's preference", is_share=True),
    Metric("alpaca_eval/length_controlled_win_rate", "AlpacaEval: the same at equal lengths", is_share=True),
)
METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*_SUMMARY, *_DETAILS, *_EVALUATED, *_BENCHMARKS)
}
SUMMARY_METRICS = tuple(metric.name for metric in _SUMMARY)


def metric(name: str) -> Metric:
    """The row of a metric, of held-out rows (`eval_loss`) or not.

    A metric that the table lacks is better when it is higher and means the same everywhere, unless its name
    ends in `loss`.
    """
    if name.removeprefix(EVAL) in METRICS:
        return METRICS[name.removeprefix(EVAL)]
    return Metric(name, name, _MIN, scale=Scale.method) if name.endswith("loss") else Metric(name, name)
