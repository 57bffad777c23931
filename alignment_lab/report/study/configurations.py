"""Cells that differ in nothing but training.seed, as one configuration; and the scores of single held-out rows, where a run left them.

Only finished cells count. Refuses to judge differences (study.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..render import text
from . import stats
from .runs import SEED, RunRecord, label_of, short_names
from .stats import Estimate

Row = Mapping[str, Any]
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


@dataclass(frozen=True)
class Configuration:
    """One row of the comparison: its settings, every cell that has them, and the finished ones by their seed."""

    label: str
    settings: dict[str, Any]
    cells: list[RunRecord]
    seeds: dict[Any, RunRecord] = field(default_factory=dict)
    repeats: int = 0  # finished cells whose seed another one has too: the newest counts

    @cached_property
    def _means(self) -> dict[tuple[str, str], Estimate | None]:
        return {}

    def values(self, metric: str, when: str = "after") -> dict[Any, float]:
        """The metric of every seed that measured it."""
        found = {
            seed: text.value_of(cell.metrics.get(metric, {}).get(when)) for seed, cell in self.seeds.items()
        }
        return {seed: value for seed, value in found.items() if _finite(value)}  # type: ignore[misc]

    def mean(self, metric: str, when: str = "after") -> Estimate | None:
        """The mean over seeds with Student's interval; None where nothing was measured."""
        if (metric, when) not in self._means:
            values = list(self.values(metric, when).values())
            self._means[metric, when] = stats.mean(values) if values else None
        return self._means[metric, when]

    def shown(self, metric: str) -> dict[str, Any] | None:
        """{"value", "ci95", "n", "of"}: over seeds where there are several, else of the one run over its held-out rows."""
        found = self.mean(metric)
        if found is None:
            return None
        if found.n > 1:
            return {"value": found.value, "ci95": _possible(metric, found.ci95), "n": found.n, "of": "seeds"}
        cell = next(iter(self.seeds[seed] for seed in self.values(metric)))
        estimate = cell.after(metric)
        return {
            "value": found.value,
            "ci95": text.interval_of(estimate),
            "n": text.n_of(estimate),
            "of": "rows",
        }


def _possible(metric: str, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """An interval within what the metric can be: Student's does not know that a share ends at 0 and 1."""
    return (max(0.0, bounds[0]), min(1.0, bounds[1])) if bounds and text.is_share(metric) else bounds


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def configurations(cells: Sequence[RunRecord]) -> list[Configuration]:
    """The cells put together by every setting that differs but the seed, in the order of the cells."""
    grouped: dict[str, list[RunRecord]] = {}
    for cell in cells:
        settings = {key: value for key, value in cell.differs.items() if key != SEED}
        key = json.dumps(settings, sort_keys=True, default=str) if cell.spec else str(cell.run.path)
        grouped.setdefault(key, []).append(cell)
    names = short_names([key for key in _keys(cells) if key != SEED])
    telling = {
        key for key in names if len({repr(cell.differs.get(key)) for cell in cells if counted(cell)}) > 1
    }
    made = [_configuration(members, names, telling) for members in grouped.values()]
    labels = [one.label for one in made]
    return [one if labels.count(one.label) == 1 else replace(one, label=one.cells[0].label) for one in made]


def _keys(cells: Sequence[RunRecord]) -> list[str]:
    return next((list(cell.differs) for cell in cells if cell.differs), [])


def _configuration(members: list[RunRecord], names: Mapping[str, str], telling: set[str]) -> Configuration:
    """`telling`: the settings that differ among finished cells; the others are named only where nothing finished."""
    settings = {key: value for key, value in members[0].differs.items() if key != SEED}
    finished = sorted(
        (cell for cell in members if counted(cell)), key=lambda cell: str(cell.state.get("ended") or "")
    )
    seeds = {(cell.spec.get("training") or {}).get("seed"): cell for cell in finished}
    ordered = dict(
        sorted(
            seeds.items(),
            key=lambda pair: (not isinstance(pair[0], int), pair[0] if isinstance(pair[0], int) else 0),
        )
    )
    said = {key: value for key, value in settings.items() if key in telling or not seeds}
    alone = members[0].label if len(members) == 1 else "every seed"
    return Configuration(
        label_of(said, names) or alone, settings, members, ordered, len(finished) - len(seeds)
    )


def counted(cell: RunRecord) -> bool:
    """Whether a cell's numbers count: it finished, and said what it came to."""
    return cell.status == "finished" and bool(cell.metrics)


def _sentences(answer: str) -> int:
    return len(SENTENCE_END.findall(answer)) or int(bool(answer.strip()))


ROW_SCORES: dict[str, Callable[[Row], Any]] = {
    "answers/correct": lambda row: row.get("after_correct"),
    "answers/words": lambda row: len(row["after"].split()),
    "answers/one_sentence": lambda row: _sentences(row["after"]) == 1,
}


def prompt_key(row: Row) -> str:
    """A prompt as text that is equal for equal prompts."""
    return json.dumps(row.get("prompt"), sort_keys=True, ensure_ascii=False)


def row_scores(cell: RunRecord, metric: str) -> dict[str, float]:
    """A metric by held-out prompt, from samples.jsonl. Empty unless their mean is what the run reported: then they are its scores."""
    score, said = ROW_SCORES.get(metric), text.value_of(cell.after(metric))
    rows = [row for row in cell.samples if isinstance(row.get("after"), str)]
    if score is None or not _finite(said) or not rows:
        return {}
    values = [(prompt_key(row), value) for row in rows if (value := score(row)) is not None]
    average = sum(float(value) for _, value in values) / len(values) if values else math.nan
    same = math.isclose(average, said, rel_tol=1e-9, abs_tol=1e-12)  # type: ignore[arg-type]
    found = {key: float(value) for key, value in values}
    return found if same and len(found) == len(values) else {}
