"""What cells have in common: weights, token ids, reference log-probabilities; computed once, before them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import data
from ..config import Experiment, Unpaired, to_plain


@dataclass(frozen=True)
class SharedPass:
    """One pass to compute: what this cell needs, for all cells that need the same.

    Between seeds only the token ids may differ: a reference log-probability does not depend on the order of
    the rows.
    """

    digest: str
    cell: str
    tokens_only: bool


def shared_keys(spec: Experiment, plain: dict[str, Any] | None = None) -> tuple[str, str]:
    """(token key, reference key): hashes of all that token ids and reference log-probabilities depend on.

    The reference key is "" where the method needs no reference. `plain`: the spec as plain data, where that
    is at hand.
    """
    plain = plain or to_plain(spec)
    max_rows = data.max_train_groups(spec)
    token_facts = {
        "model": plain["model"],
        "data": plain["data"],
        "eval": [spec.eval.rows, spec.eval.generations],
        "format": spec.method.format.name,
        "needed": max_rows,
    }
    token_key = _digest({**token_facts, "seed": spec.training.seed})
    if not spec.method.needs_reference:
        return token_key, ""
    reference_facts = {
        **token_facts,
        "parallel": plain["parallel"],
        "method": spec.method.name if isinstance(spec.method, Unpaired) else "paired",
        "seed": max_rows and spec.training.seed,  # it matters only where it chooses rows
    }
    return token_key, _digest(reference_facts)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def shared_passes(cells: Sequence[tuple[str, str, str]]) -> list[SharedPass]:
    """The passes that two or more of the cells (name, token key, reference key) need, each once."""
    token_counts = Counter(token_key for _, token_key, _ in cells)
    reference_counts = Counter(reference_key for _, _, reference_key in cells)
    passes: list[SharedPass] = []
    covered: set[str] = set()  # keys whose results a pass computes
    for name, token_key, reference_key in cells:
        if reference_key and reference_counts[reference_key] > 1 and reference_key not in covered:
            passes.append(SharedPass(reference_key, name, tokens_only=False))
            covered |= {reference_key, token_key}
        elif token_counts[token_key] > 1 and token_key not in covered:
            passes.append(SharedPass(token_key, name, tokens_only=True))
            covered.add(token_key)
    return passes
