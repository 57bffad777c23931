"""How often a rule that understands nothing picks the chosen answer: what a preference method must beat to
have learnt anything else.

The rules look at the form of two answers: which is longer, which has more lists, headings or other markup,
which does not refuse; and a classifier knows their words alone. A pair on which a rule sees no difference
counts one half, as a coin would. A share below one half says that the opposite of the rule does better.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ..runtime.cluster_means import influence, share_interval, sum_by_prompt
from ..runtime.distributions import t_quantile
from .overlap import prompt_key
from .rows import Message, Row
from .words import split_words

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

MAX_PAIRS = 1000  # that are looked at
MIN_PAIRS = 50  # of which the classifier learns anything
MAX_WORDS = 1500  # the most frequent ones, which the classifier knows
FOLDS = 5
PENALTY = 1.0  # of the squared weights, on the sum of the losses: scikit-learn's default
STEPS = 100

LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
MARKUP = re.compile(r"\*\*\S|__\S|```|`[^`\n]+`|^\|.*\|$|\]\(http|^>[ \t]", re.MULTILINE)
REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|afraid)\b.{0,60}\b(?:can'?t|cannot|can not|unable|not able|won'?t)\b"
    r"|\bi(?:'m| am)? (?:can'?t|cannot|can not|won'?t|will not|unable to|not able to|not comfortable)\b"
    r"|\bas an ai\b.{0,80}\b(?:can'?t|cannot|can not|unable|not able|do not|don'?t)\b",
    re.DOTALL,
)
REFUSAL_CHARACTERS = 200  # an answer that refuses does so at its beginning


@dataclass(frozen=True)
class Shortcut:
    """A rule, and the share of pairs in which it picks the chosen answer."""

    name: str
    share: float
    low: float  # the 95% interval, over prompts
    high: float
    pairs: int
    undecided: int  # pairs on which the rule sees no difference; each counts one half


def shortcuts(rows: Iterable[Row], learn_from: Iterable[Row] | None = None) -> list[Shortcut]:
    """Every rule on the first `MAX_PAIRS` preference rows, converted, in any order; [] where there are none.

    The classifier learns from the pairs of `learn_from` where they are given, and otherwise from the other
    pairs of `rows` (five folds, the pairs of a prompt in one); with fewer than `MIN_PAIRS` it is left out.
    """
    pairs = list(islice(_with_pairs(rows), MAX_PAIRS))
    if not pairs:
        return []
    prompts = _number_prompts(pairs)
    answers = [(answer_text(row["chosen"]), answer_text(row["rejected"])) for row in pairs]
    found = []
    for name, score in RULES.items():
        found.append(_measure(name, [score(good) - score(bad) for good, bad in answers], prompts))
    if learn_from is None:
        differences = _classify_folds(answers, prompts)
    else:
        others = [
            (answer_text(row["chosen"]), answer_text(row["rejected"]))
            for row in islice(_with_pairs(learn_from), MAX_PAIRS)
        ]
        differences = _classify(others, answers)
    return found + ([_measure("its words alone", differences, prompts)] if differences else [])


def answer_text(messages: Sequence[Message]) -> str:
    """The text of an answer's turns."""
    return "\n".join(message.get("content") or "" for message in messages)


def is_refusal(text: str) -> bool:
    """Whether an answer begins by declining, in English."""
    return bool(REFUSAL.search(text[:REFUSAL_CHARACTERS].lower().replace("\u2019", "'")))


def _count(pattern: re.Pattern[str]) -> Callable[[str], float]:
    return lambda text: len(pattern.findall(text))


# name -> the score of an answer; the answer with the higher one is picked
RULES: dict[str, Callable[[str], float]] = {
    "the longer one": len,
    "more list items": _count(LIST_ITEM),
    "more headings": _count(HEADING),
    "more bold, code, tables, links": _count(MARKUP),
    "the one that is no refusal": lambda text: not is_refusal(text),
}


def _with_pairs(rows: Iterable[Row]) -> Iterable[Row]:
    """The preference rows among `rows`, also those that were converted to conversations."""
    return (row for row in rows if row.get("chosen") and row.get("rejected"))


def _number_prompts(rows: Sequence[Row]) -> list[int]:
    """The prompt of each row, counted from 0 in the order in which they come."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(prompt_key(row), len(numbers)) for row in rows]


def _measure(name: str, differences: Sequence[float], prompts: Sequence[int]) -> Shortcut:
    """A rule's share and interval from the chosen answer's score minus the rejected one's, for each pair."""
    values = [0.5 if difference == 0 else float(difference > 0) for difference in differences]
    share, count = sum(values) / len(values), len(set(prompts))
    low, high = 0.0, 1.0
    if count > 1:
        found = influence(*sum_by_prompt(prompts, values, None, count))
        half_width = t_quantile(found.degrees) * math.sqrt(float((found.errors**2).sum()))
        if half_width > 0 or share in (0, 1):
            low, high = share_interval(share, half_width, count, len(values))
        else:
            low = high = share  # every pair is undecided
    return Shortcut(name, share, low, high, len(values), sum(value == 0.5 for value in values))


def _classify_folds(answers: Sequence[tuple[str, str]], prompts: Sequence[int]) -> list[float]:
    """The classifier's score of each pair, learnt from the pairs of other folds."""
    folds = [prompt % FOLDS for prompt in prompts]
    if len(answers) < MIN_PAIRS or len(set(folds)) < FOLDS:
        return []
    words, scores = [_word_counts(pair) for pair in answers], [0.0] * len(answers)
    for fold in range(FOLDS):
        inside = [index for index, other in enumerate(folds) if other == fold]
        learnt = _learn([each for each, other in zip(words, folds, strict=True) if other != fold])
        for index in inside:
            scores[index] = _score(learnt, words[index])
    return scores


def _classify(learn_from: Sequence[tuple[str, str]], answers: Sequence[tuple[str, str]]) -> list[float]:
    if len(learn_from) < MIN_PAIRS:
        return []
    learnt = _learn([_word_counts(pair) for pair in learn_from])
    return [_score(learnt, _word_counts(pair)) for pair in answers]


def _word_counts(pair: tuple[str, str]) -> dict[bytes, float]:
    """log(1 + count) of each word in the first answer, minus that in the second; 0 is left out."""
    good, bad = (Counter(split_words(text)) for text in pair)
    differences = {word: math.log1p(good[word]) - math.log1p(bad[word]) for word in good | bad}
    return {word: difference for word, difference in differences.items() if difference}


def _score(weights: dict[bytes, float], words: dict[bytes, float]) -> float:
    """A sum in the order of the words, which is the same in every process."""
    return sum(weights.get(word, 0.0) * words[word] for word in sorted(words))


def _learn(pairs: Sequence[dict[bytes, float]]) -> dict[bytes, float]:
    """Weights of words by logistic regression: P(first answer chosen) = sigmoid(weights . differences).

    Nesterov's method with a step of 1 / L on the penalized sum of losses; without an intercept, as the order
    of the two answers means nothing. (A fit of this size is not worth the import of a library.)
    """
    import numpy as np

    frequency = Counter(word for words in pairs for word in words)
    vocabulary = sorted(frequency, key=lambda word: (-frequency[word], word))[:MAX_WORDS]
    if not vocabulary:
        return {}
    columns = {word: column for column, word in enumerate(vocabulary)}
    features = np.zeros((len(pairs), len(vocabulary)), np.float32)  # [pairs, words]
    for index, words in enumerate(pairs):
        for word, difference in words.items():
            if word in columns:
                features[index, columns[word]] = difference
    step = 1 / (PENALTY + _largest_curvature(features))
    weights = ahead = np.zeros(len(vocabulary), np.float32)
    for count in range(STEPS):
        margins = np.clip(features @ ahead, -30, 30)
        gradient = PENALTY * ahead - features.T @ (1 / (1 + np.exp(margins)))
        before, weights = weights, ahead - np.float32(step) * gradient
        ahead = weights + np.float32(count / (count + 3)) * (weights - before)
    return dict(zip(vocabulary, weights.tolist(), strict=True))


def _largest_curvature(features: Array) -> float:
    """A quarter of the largest eigenvalue of features^T features, by power iteration, with a margin."""
    import numpy as np

    direction = np.ones(features.shape[1], np.float32)
    length = 1.0
    for _ in range(15):
        direction = features.T @ (features @ direction)
        length = float(np.linalg.norm(direction)) or 1.0
        direction = direction / length
    return 0.25 * 1.1 * length
