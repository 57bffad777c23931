"""Which metrics the runs share, which of them mean the same in every run, and which to look at first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from ...config.metrics import Scale
from ...config.metrics import metric as metric_row
from .runs import RunRecord
from .settings import MISSING, canonical
from .values import ordered_metrics, value_of


def reported_metrics(records: Iterable[RunRecord]) -> list[str]:
    """Every metric that any run measured, in the order of the table of metrics."""
    return ordered_metrics(dict.fromkeys(name for record in records for name in record.metrics))


def headline_metric(records: Sequence[RunRecord]) -> str | None:
    """The metric to judge by: the first that most runs measured and that means the same in all of them.

    One with the same value everywhere says nothing: it is taken only where all of them have.
    """
    values = {
        name: [value for record in records if (value := value_of(record.after(name))) is not None]
        for name in reported_metrics(records)
        if is_comparable(name, records)
    }
    most = max(map(len, values.values()), default=0)
    candidates = [name for name in values if values[name] and len(values[name]) == most]
    varying = [name for name in candidates if len(set(values[name])) > 1]
    return next(iter(varying or candidates), None)


def is_comparable(metric: str, records: Sequence[RunRecord]) -> bool:
    """Whether a difference in this metric means anything.

    Losses, a method's own rewards and log-probabilities need the same method with the same options; they and
    implicit rewards in nats need the same tokenizer.
    """
    scale = metric_row(metric).scale
    if scale is Scale.method and method_varies(records):
        return False
    return scale is Scale.common or len(distinct(_tokenizer(record) for record in records)) < 2


def _tokenizer(record: RunRecord) -> str | None:
    return record.content_hashes.get("tokenizer")


def method_varies(records: Sequence[RunRecord]) -> bool:
    """Whether the method, beta or another option of the method differs among the runs."""
    keys = dict.fromkeys(key for record in records for key in record.varied)
    return any(
        _varies(records, key) for key in keys if key in ("beta", "plugin_sha256") or key.startswith("method.")
    )


def _varies(records: Sequence[RunRecord], key: str) -> bool:
    return len({canonical(record.varied.get(key, MISSING)) for record in records if record.varied}) > 1


def distinct(values: Iterable[object]) -> set[str]:
    """The distinct values as JSON, without None."""
    return {json.dumps(value, sort_keys=True, default=str) for value in values if value is not None}
