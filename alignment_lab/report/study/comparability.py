"""What forbids comparing cells, which metrics they share, and how to read the numbers, in sentences.

Pure functions over cells. Refuses to know files (cells.py), statistics (stats.py) and drawing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..render import text
from .configurations import counted, prompt_key
from .runs import (
    MISSING,
    SEED,
    RunRecord,
    canonical,
    compared,
    differing,
    load_record,
    records_of,
    runs_in,
    short_names,
    shown,
)

__all__ = [
    "MISSING",
    "SEED",
    "RunRecord",
    "counted",
    "differing",
    "load_record",
    "records_of",
    "runs_in",
    "short_names",
    "shown",
]

ADVICE = "Their numbers do not answer the same question; compare only cells with the same data."


def metric_names(cells: Sequence[RunRecord]) -> list[str]:
    """Every metric that any cell measured, those that readers ask for first in front."""
    return text.ordered_metrics({name: None for cell in cells for name in cell.metrics})


def headline(cells: Sequence[RunRecord]) -> str | None:
    """The metric to look at first: the first of the usual ones that most cells measured; losses of unlike objectives never.

    One that came out the same everywhere says nothing: it is taken only where all of them did.
    """
    names = [name for name in metric_names(cells) if not scaled(name) or on_one_scale(name, cells)]
    values = {
        name: [value for cell in cells if (value := text.value_of(cell.after(name))) is not None]
        for name in names
    }
    most = max(map(len, values.values()), default=0)
    full = [name for name in names if values[name] and len(values[name]) == most]
    return next((name for name in full if len(set(values[name])) > 1), full[0] if full else None)


def scaled(metric: str) -> bool:
    """Whether a metric is on the scale of its method and beta: losses, rewards and their margins."""
    return metric.endswith("loss") or ("rewards/" in metric and not text.is_share(metric))


def on_one_scale(metric: str, cells: Sequence[RunRecord]) -> bool:
    """Whether a difference in this metric means anything: same objective for losses and rewards, same tokens for log-probabilities."""
    if scaled(metric) and any(
        _varies(cells, key) for key in _keys(cells) if key == "beta" or key.startswith("method.")
    ):
        return False
    return (
        not (scaled(metric) or "logps" in metric)
        or len(_distinct(cell.content.get("tokenizer") for cell in cells)) < 2
    )


def _keys(cells: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell.differs))


def _varies(cells: Sequence[RunRecord], key: str) -> bool:
    return len({canonical(cell.differs.get(key, MISSING)) for cell in cells if cell.differs}) > 1


def warnings(cells: Sequence[RunRecord]) -> list[str]:
    """What forbids comparing the cells: other data to train or to measure on. Each says what differs and what to do."""
    results = [cell for cell in cells if counted(cell)] or list(cells)
    checks = (_other_data, _other_evaluation, _other_prompts, _other_counts, _other_weights)
    return [said for check in checks for said in check(results)]


def _other_data(cells: Sequence[RunRecord]) -> Iterator[str]:
    keys = [key for key in differing([cell.spec for cell in cells]) if key.startswith("data.")]
    if keys:
        listed = "; ".join(f"{key}: {_values(cells, key)}" for key in keys)
        yield f"The cells were trained or evaluated on different data ({listed}). {ADVICE}"
    elif len(digests := _distinct(cell.content.get("data") for cell in cells)) > 1:
        listed = ", ".join(sorted(digest.strip('"')[:8] for digest in digests))
        yield (
            f"The data have the same settings but not the same content (provenance.json, content.data: {listed}): "
            f"the rows changed between the runs. {ADVICE}"
        )


def _other_evaluation(cells: Sequence[RunRecord]) -> Iterator[str]:
    keys = [
        key
        for key in differing([cell.spec for cell in cells])
        if key.startswith("eval.") and key != "eval.batch"
    ]
    if keys:
        listed = "; ".join(f"{key}: {_values(cells, key)}" for key in keys)
        yield f"The cells were evaluated differently ({listed}). Their numbers are not of one measurement; evaluate them alike."


def _other_prompts(cells: Sequence[RunRecord]) -> Iterator[str]:
    groups: dict[str, list[RunRecord]] = {}
    for cell in cells:
        if cell.samples:
            groups.setdefault(prompts_digest(cell), []).append(cell)
    if len(groups) > 1:
        listed = "; ".join(
            f"{digest[:8]}: {len(found[0].samples)} prompts in {_named(found)}"
            for digest, found in groups.items()
        )
        yield f"The cells answered different held-out prompts (samples.jsonl: {listed}). Shares of answers are not of the same rows."


def _named(cells: Sequence[RunRecord], most: int = 3) -> str:
    names = sorted(cell.run.path.name for cell in cells)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def prompts_digest(cell: RunRecord) -> str:
    """The sha256 of the held-out prompts that a cell answered, in their order."""
    return hashlib.sha256("\n".join(prompt_key(row) for row in cell.samples).encode()).hexdigest()


def _other_counts(cells: Sequence[RunRecord]) -> Iterator[str]:
    counts = _distinct((cell.report.get("rows") or {}).get("eval") for cell in cells)
    if len(counts) > 1:
        yield f"The cells were evaluated on different numbers of rows ({', '.join(sorted(counts))}). {ADVICE}"


def _other_weights(cells: Sequence[RunRecord]) -> Iterator[str]:
    """Equal settings of the model that led to other weights: a Hub name that moved, a folder that was written anew."""
    groups: dict[str, set[str]] = {}
    for cell in cells:
        if "model" in cell.content:
            settings = {"model": cell.spec.get("model"), "seed": _seed(cell)}
            groups.setdefault(json.dumps(settings, sort_keys=True, default=str), set()).add(
                str(cell.content["model"])
            )
    if any(len(found) > 1 for found in groups.values()):
        yield "Cells with the same model settings started from different weights (provenance.json, content.model): they had other starts."


def _values(cells: Sequence[RunRecord], key: str) -> str:
    return ", ".join(
        dict.fromkeys(shown(compared(cell.spec).get(key, MISSING)) for cell in cells if cell.spec)
    )


def _distinct(values: Iterable[Any]) -> set[str]:
    return {json.dumps(value, sort_keys=True, default=str) for value in values if value is not None}


def notes(cells: Sequence[RunRecord]) -> list[str]:
    """How to read the numbers: what the brackets are, how many seeds stand behind them, what may not be compared."""
    trained = [cell for cell in cells if counted(cell)] or list(cells)
    seeds = {canonical(seed) for cell in trained if (seed := _seed(cell)) is not None}
    found = (
        [] if len(seeds) > 1 else ["Brackets hold the 95% interval of one number over its n held-out rows."]
    )
    if len(seeds) <= 1:
        found.append(
            "There is one seed: a difference within the intervals may be noise. Sweep training.seed=1,2,3 to tell."
        )
    else:
        found.append(
            f"There are {len(seeds)} seeds. Brackets of a mean over seeds hold its 95% interval (Student's t), wide where seeds are few;"
        )
        found[-1] += " those of a single run hold that of one number over its n held-out rows."
    if any(_varies(cells, key) for key in _keys(cells) if key == "beta" or key.startswith("method.")):
        found.append(
            "Losses, rewards and margins are on each method's and beta's own scale: across them, compare shares and answers."
        )
    unfinished = [cell for cell in cells if not counted(cell)]
    if unfinished and len(cells) > 1:
        found.append(
            f"Not finished: {len(unfinished)} of {len(cells)} cells. They are listed without a result, and in no mean."
        )
    return found + list(_repeats(trained)) + list(_other_code(trained))


def _repeats(cells: Sequence[RunRecord]) -> Iterator[str]:
    """Runs of one configuration that have a seed in common."""
    if (
        len(cells) > 1
        and (
            repeated := len(cells)
            - len({canonical(cell.differs | {SEED: _seed(cell)}) for cell in cells if cell.spec})
        )
        > 0
    ):
        yield f"{repeated} of the runs repeat another one's settings and seed: of such runs the newest counts."


def _seed(cell: RunRecord) -> Any:
    return (cell.spec.get("training") or {}).get("seed")


def _other_code(cells: Sequence[RunRecord]) -> Iterator[str]:
    codes = _distinct(
        [git.get("commit"), git.get("diff")] for cell in cells if (git := cell.provenance.get("git"))
    )
    if len(codes) > 1:
        yield f"The cells were run by {len(codes)} versions of the lab's code (provenance.json, git)."
