"""What forbids comparing runs, and how to read their numbers, in sentences. Reads no files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from .headline import distinct, method_varies
from .row_scores import prompt_key
from .runs import RunRecord
from .settings import MISSING, SEED, canonical, compared_settings, format_setting, varied_keys

FEW_PROMPTS = 16  # below it, Student's interval of skewed numbers misses by more than 3 points
ADVICE = "Their numbers do not answer the same question; compare only runs with the same data."


def warnings(records: Sequence[RunRecord]) -> list[str]:
    """What forbids comparing the runs: other data to train or to evaluate on. Each says what differs."""
    results = [record for record in records if record.has_results] or list(records)
    checks = (_data_differs, _evaluation_differs, _prompts_differ, _row_counts_differ, _weights_differ)
    return [warning for check in checks for warning in check(results)]


def _data_differs(records: Sequence[RunRecord]) -> Iterator[str]:
    keys = [key for key in varied_keys(record.spec for record in records) if key.startswith("data.")]
    if keys:
        differences = "; ".join(f"{key}: {_listed_values(records, key)}" for key in keys)
        yield f"The runs were trained or evaluated on different data ({differences}). {ADVICE}"
    elif len(hashes := distinct(record.content_hashes.get("data") for record in records)) > 1:
        short_hashes = ", ".join(sorted(value.strip('"')[:8] for value in hashes))
        yield (
            "The data have the same settings but not the same content "
            f"(provenance.json, content.data: {short_hashes}): the rows changed between the runs. {ADVICE}"
        )


def _evaluation_differs(records: Sequence[RunRecord]) -> Iterator[str]:
    keys = [
        key
        for key in varied_keys(record.spec for record in records)
        if key.startswith("eval.") and key != "eval.batch"
    ]
    if keys:
        differences = "; ".join(f"{key}: {_listed_values(records, key)}" for key in keys)
        yield (
            f"The runs were evaluated differently ({differences}). "
            "Their numbers do not measure the same thing; evaluate them alike."
        )


def _prompts_differ(records: Sequence[RunRecord]) -> Iterator[str]:
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.samples:
            groups.setdefault(prompts_digest(record), []).append(record)
    if len(groups) > 1:
        differences = "; ".join(
            f"{digest[:8]}: {len(members[0].samples)} prompts in {_listed_names(members)}"
            for digest, members in groups.items()
        )
        yield (
            f"The runs answered different held-out prompts (samples.jsonl: {differences}). "
            "Shares of answers are not of the same rows."
        )


def prompts_digest(record: RunRecord) -> str:
    """The sha256 of the held-out prompts that a run answered, in their order."""
    return hashlib.sha256("\n".join(prompt_key(row) for row in record.samples).encode()).hexdigest()


def _row_counts_differ(records: Sequence[RunRecord]) -> Iterator[str]:
    counts = distinct((record.report.get("rows") or {}).get("eval") for record in records)
    if len(counts) > 1:
        yield f"The runs were evaluated on different numbers of rows ({', '.join(sorted(counts))}). {ADVICE}"


def _weights_differ(records: Sequence[RunRecord]) -> Iterator[str]:
    """Equal model settings that led to other weights: a Hub name that moved, a folder that was rewritten."""
    hashes: dict[str, set[str]] = {}
    for record in records:
        if "model" in record.content_hashes:
            settings = {"model": record.spec.get("model"), "seed": record.seed}
            key = json.dumps(settings, sort_keys=True, default=str)
            hashes.setdefault(key, set()).add(str(record.content_hashes["model"]))
    if any(len(values) > 1 for values in hashes.values()):
        yield (
            "Runs with the same model settings started from different weights "
            "(provenance.json, content.model): they had different initial models."
        )


def _listed_names(records: Sequence[RunRecord], most: int = 3) -> str:
    names = sorted(record.run.path.name for record in records)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _listed_values(records: Sequence[RunRecord], key: str) -> str:
    values = (compared_settings(record.spec).get(key, MISSING) for record in records if record.spec)
    return ", ".join(dict.fromkeys(map(format_setting, values)))


def notes(records: Sequence[RunRecord]) -> list[str]:
    """How to read the numbers: what the brackets are, how many seeds there are, what may not be compared."""
    finished = [record for record in records if record.has_results] or list(records)
    sentences = [*_seed_notes(finished), *_scale_note(records)]
    unfinished = sum(not record.has_results for record in records)
    if unfinished and len(records) > 1:
        sentences.append(
            f"Not finished: {unfinished} of {len(records)} runs. "
            "They are listed without a result, and are in no mean."
        )
    return [*sentences, *_repeats_note(finished), *_code_note(finished)]


def _seed_notes(records: Sequence[RunRecord]) -> Iterator[str]:
    seeds = {canonical(record.seed) for record in records if record.seed is not None}
    if len(seeds) <= 1:
        yield (
            "Brackets hold the 95% interval of one number for prompts like the held-out ones; "
            "rows of one prompt count as one draw."
        )
        yield (
            "There is one seed: a difference within the intervals may be noise. "
            "Sweep training.seed=1,2,3 to find out."
        )
    else:
        yield (
            f"There are {len(seeds)} seeds. Brackets of a mean over seeds hold its 95% interval for other "
            "seeds and for prompts like the held-out ones, wide where seeds are few (for other seeds "
            "alone where a run has no scores of its rows); those of a single run for prompts like these."
        )
    few = min((count for record in records for count in _prompt_counts(record)), default=FEW_PROMPTS)
    if few < FEW_PROMPTS:
        yield (
            f"Of {few} prompts, an interval of skewed numbers (losses, words) holds the true mean less often "
            "than in 95% of cases: docs/STATISTICS.md has figures."
        )


def _prompt_counts(record: RunRecord) -> list[int]:
    """On how many prompts each metric rests, where that was recorded."""
    counts = ((record.after(name) or {}).get("prompts") for name in record.metrics)
    return [count for count in counts if isinstance(count, int) and count > 1]


def _scale_note(records: Sequence[RunRecord]) -> Iterator[str]:
    if method_varies(records):
        yield (
            "Losses, rewards/* and logps/* are on the scale of their method and its beta: "
            "across methods and betas, compare implicit_rewards/* and answers."
        )


def _repeats_note(records: Sequence[RunRecord]) -> Iterator[str]:
    """Runs of one configuration that have a seed in common."""
    settings = {canonical(record.varied | {SEED: record.seed}) for record in records if record.spec}
    repeats = len(records) - len(settings)
    if len(records) > 1 and repeats > 0:
        yield f"{repeats} of the runs repeat another one's settings and seed: of such runs the newest counts."


def _code_note(records: Sequence[RunRecord]) -> Iterator[str]:
    versions = distinct(
        [git.get("commit"), git.get("diff")] for record in records if (git := record.provenance.get("git"))
    )
    if len(versions) > 1:
        yield f"The runs used {len(versions)} versions of the lab's code (provenance.json, git)."
