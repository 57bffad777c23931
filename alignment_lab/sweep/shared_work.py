"""What cells of a sweep have in common: weights, token ids, and what the reference says of them. It is made once, before they start."""

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
    """One thing to make: what this cell needs. Of a sweep of seeds, the others' token ids only: the reference knows no order."""

    digest: str
    cell: str
    tokens_only: bool


def shared_keys(spec: Experiment, plain: dict[str, Any] | None = None) -> tuple[str, str]:
    """Two hashes: of all that the token ids of this experiment come from, and of all that the reference's answers do ("": it asks none)."""
    plain = plain or to_plain(spec)
    needed = data.rows_needed(spec)
    facts = {
        "model": plain["model"],
        "data": plain["data"],
        "eval": [spec.eval.rows, spec.eval.generations],
        "format": spec.method.format.name,
        "needed": needed,
    }
    asked = {
        **facts,
        "parallel": plain["parallel"],
        "method": spec.method.name if isinstance(spec.method, Unpaired) else "paired",
    }
    seed = spec.training.seed
    return _hash({**facts, "seed": seed}), _hash(
        {**asked, "seed": needed and seed}
    ) if spec.method.needs_reference else ""


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def shared_passes(cells: Sequence[tuple[str, str, str]]) -> list[SharedPass]:
    """What to make for cells (name, token key, reference key): what two or more of them need."""
    tokens, references = Counter(one for _, one, _ in cells), Counter(one for _, _, one in cells)
    found: dict[str, SharedPass] = {}
    asked: set[str] = set()
    for name, token, reference in cells:
        first = reference not in asked and reference != "" and references[reference] > 1
        if first or (tokens[token] > 1 and token not in found):
            found[reference if first else token] = SharedPass(
                reference if first else token, name, tokens_only=not first
            )
            asked |= {reference} if first else set()
            found.setdefault(token, found[reference if first else token])
    return list(dict.fromkeys(found.values()))
