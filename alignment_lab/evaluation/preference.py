"""Held-out pairs: which answer a model prefers, by how much; by source, and by the length of the answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..config import Format
from ..config.metrics import EVAL, IMPLICIT, metric
from ..data import Row, group_pairs
from .intervals import Scores
from .prompts import prompt_digest
from .results import MeasureResult
from .reward_scores import reward_scores, sigmoid

if TYPE_CHECKING:
    from .measures import MeasureContext
    from .subject import Subject

LOGPS = "logps"  # what a model without a reference is judged by
CALIBRATION_BINS = 5  # of equally many pairs
REWARD_ACCURACY = f"{EVAL}accuracy"
# which the tables are of: the first that a model has
ACCURACIES = (f"{EVAL}{IMPLICIT}accuracies", REWARD_ACCURACY, f"{EVAL}{LOGPS}/accuracies")


@dataclass(frozen=True)
class Pair:
    """What of a held-out pair its figures are grouped by."""

    prompt: str  # digest
    chosen: int  # tokens
    rejected: int

    def is_matched(self, ratio: float) -> bool:
        """Whether the longer answer has at most `ratio` times the tokens of the shorter one."""
        return max(self.chosen, self.rejected) <= ratio * max(1, min(self.chosen, self.rejected))


def measure_preference(subject: Subject, context: MeasureContext) -> MeasureResult:
    """What the run's own method measures of held-out rows; of any other model the implicit rewards from its
    reference, or, without one, the log-probabilities of the answers.
    """
    if subject.candidate.run is not None:
        scores, rows = context.method_scores(subject, context)
        pairs = [_pair(row) for row in _as_pairs(rows)]
    else:
        rows = context.rows.tokenized(subject, Format.preference, context.spec.eval.rows)
        pairs = [_pair(row) for row in rows]
        scores = (
            _reward_scores(subject, rows) if subject.is_reward_model else _pair_scores(subject, rows, context)
        )
    name = next((each for each in ACCURACIES if each in scores), None)
    if name is None or len(scores[name].values) != len(pairs):
        return MeasureResult(
            scores, lines=["no pairs are held out: there is no accuracy"] if name is None else []
        )
    ratio = context.spec.eval.preference.length_ratio
    scores |= _matched(scores[name], pairs, ratio)
    tables = {"Accuracy by the length of the answers": by_length(scores[name], pairs, ratio)}
    if sources := _sources(rows, pairs):
        tables["Accuracy by source"] = by_group(scores[name], sources)
    if subject.is_reward_model:
        margins = scores[f"{EVAL}margin"]
        scores[f"{EVAL}brier"] = Scores(
            [(1 - sigmoid(margin)) ** 2 for margin in margins.values], prompts=margins.prompts
        )
        tables["Calibration of the scores' differences"] = calibration(margins.values)
    return MeasureResult(scores, tables)


def _pair(row: Row) -> Pair:
    return Pair(prompt_digest(row), len(row["chosen_ids"]), len(row["rejected_ids"]))


def _as_pairs(rows: Sequence[Row]) -> list[Row]:
    """Pairs as they are, or of two halves; none where rows are no pairs."""
    if not rows or "chosen_ids" in rows[0]:
        return list(rows)
    groups = group_pairs(rows)
    if any(len(group) != 2 for group in groups) or "completion_ids" not in rows[0]:
        return []
    halves = [[rows[index] for index in group] for group in groups]
    return [
        {**good, "chosen_ids": good["completion_ids"], "rejected_ids": bad["completion_ids"]}
        for good, bad in halves
    ]


def _sources(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    """The source of each pair, where there are several."""
    names = [str(row.get("source", "")) for row in rows] if len(rows) == len(pairs) else []
    return names if len(set(names)) > 1 else []


def _pair_scores(subject: Subject, rows: Sequence[Row], context: MeasureContext) -> dict[str, Scores]:
    """log p of both answers, and the implicit rewards where there is a reference: sums over tokens, nats."""
    own = answer_sums(subject, rows, context)
    prompts = [prompt_digest(row) for row in rows]
    per_token = [
        (chosen / len(row["chosen_ids"]), rejected / len(row["rejected_ids"]))
        for (chosen, rejected), row in zip(own, rows, strict=True)
    ]
    values = {
        f"{LOGPS}/chosen": [chosen for chosen, _ in own],
        f"{LOGPS}/rejected": [rejected for _, rejected in own],
        f"{LOGPS}/accuracies": [_is_higher(*pair) for pair in own],
        f"{LOGPS}/accuracies_per_token": [_is_higher(*pair) for pair in per_token],
    }
    if subject.reference_name is not None:
        with subject.reference(context.console) as reference:
            start = answer_sums(reference, rows, context)
        gains = [
            (chosen - before, rejected - other)
            for (chosen, rejected), (before, other) in zip(own, start, strict=True)
        ]
        values |= {
            f"{IMPLICIT}chosen": [chosen for chosen, _ in gains],
            f"{IMPLICIT}rejected": [rejected for _, rejected in gains],
            f"{IMPLICIT}margins": [chosen - rejected for chosen, rejected in gains],
            f"{IMPLICIT}accuracies": [_is_higher(*pair) for pair in gains],
        }
    return {
        f"{EVAL}{name}": Scores(numbers, share=metric(name).is_share, prompts=prompts)
        for name, numbers in values.items()
    }


def answer_sums(subject: Subject, rows: Sequence[Row], context: MeasureContext) -> list[tuple[float, float]]:
    """log p of the chosen and the rejected answer of each row: summed over tokens, nats."""
    from ..engine.logprobs import score_sequences
    from ..engine.packing import ScoredSequence
    from ..runtime.progress import progress_tracker

    sequences = [
        ScoredSequence(row["prompt_ids"], row[f"{answer}_ids"])
        for row in rows
        for answer in ("chosen", "rejected")
    ]
    progress = progress_tracker(f"pairs of {subject.name}", context.console)
    logps = score_sequences(subject.model, sequences, subject.engine, subject.dtype, progress)
    sums = [float(tokens.double().sum()) for tokens in logps]
    return list(zip(sums[::2], sums[1::2], strict=True))


def _reward_scores(subject: Subject, rows: Sequence[Row]) -> dict[str, Scores]:
    """A reward model's score of both answers: which is higher, and by how much."""
    scores = reward_scores(
        subject,
        [(row["prompt_ids"], row[f"{answer}_ids"]) for row in rows for answer in ("chosen", "rejected")],
    )
    prompts = [prompt_digest(row) for row in rows]
    both = list(zip(scores[::2], scores[1::2], strict=True))
    return {
        REWARD_ACCURACY: Scores([_is_higher(*pair) for pair in both], share=True, prompts=prompts),
        f"{EVAL}margin": Scores([chosen - rejected for chosen, rejected in both], prompts=prompts),
        f"{EVAL}mean_reward": Scores([sum(pair) / 2 for pair in both], prompts=prompts),
    }


def _is_higher(chosen: float, rejected: float) -> float:
    """1 where the chosen answer has more, 0.5 at a tie."""
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _matched(accuracy: Scores, pairs: Sequence[Pair], ratio: float) -> dict[str, Scores]:
    """The accuracy on pairs whose answers are about equally long: there length tells nothing."""
    places = [place for place, pair in enumerate(pairs) if pair.is_matched(ratio)]
    return {f"{EVAL}length_matched_accuracies": select(accuracy, places)} if places else {}


def select(scores: Scores, places: Sequence[int]) -> Scores:
    """The scores of some rows."""
    prompts, weights = scores.prompts, scores.weights
    return Scores(
        [scores.values[place] for place in places],
        [weights[place] for place in places] if weights else None,
        scores.share,
        [prompts[place] for place in places] if prompts is not None else None,
    )


def by_length(accuracy: Scores, pairs: Sequence[Pair], ratio: float) -> list[dict[str, Any]]:
    """The accuracy where the chosen answer is shorter, about as long, and longer."""
    names = [
        f"within a factor of {ratio:g}"
        if pair.is_matched(ratio)
        else "chosen shorter"
        if pair.chosen < pair.rejected
        else "chosen longer"
        for pair in pairs
    ]
    return by_group(accuracy, names)


def by_group(scores: Scores, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each name, in the order of the alphabet: the mean of its rows with its interval."""
    rows: list[Mapping[str, Any]] = []
    for name in sorted(set(names)):
        places = [place for place, other in enumerate(names) if other == name]
        rows.append({"rows": name, "value": dict(select(scores, places).estimate())})
    return [dict(row) for row in rows]


def calibration(margins: Sequence[float]) -> list[dict[str, Any]]:
    """Of bins of equally many pairs, by the probability that the model gives the answer that it prefers,
    sigmoid(|margin|): that probability, and how often the preferred answer is the chosen one.
    """
    ordered = sorted(margins, key=abs)
    count = min(CALIBRATION_BINS, len(ordered))
    bounds = [round(len(ordered) * place / count) for place in range(count + 1)]
    rows = []
    for start, end in pairwise(bounds):
        part = ordered[start:end]
        right = Scores([_is_higher(margin, 0.0) for margin in part], share=True).estimate()
        said = math.fsum(sigmoid(abs(margin)) for margin in part) / len(part)
        rows.append({"rows": f"{start + 1} to {end}", "said": said, "right": dict(right)})
    return rows
