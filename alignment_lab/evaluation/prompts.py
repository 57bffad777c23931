"""Which held-out rows ask the same, and the file of a run that has the scores of single rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..data import prompt_messages
from ..runtime.files import json_digest
from .intervals import Scores

if TYPE_CHECKING:
    from ..data.rows import Row


def prompt_digest(row: Row) -> str:
    """Equal for rows with equal prompts, in every run. A text has none: it stands for itself."""
    return content_digest(prompt_messages(row) or row.get("text") or row.get("input_ids"))


def content_digest(content: object) -> str:
    """Sixteen hexadecimal digits of the content's sha256."""
    return json_digest(content)[:16]


def row_scores(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """row_scores.json: every metric's values, their weights where it has some, and the prompt of each.

    `prompts` has digests, a metric's `prompts` indices among them. What is measured on all rows at once is
    left out.
    """
    known = {name: each for name, each in scores.items() if each.prompts is not None}
    digests = sorted({str(prompt) for each in known.values() for prompt in each.prompts or ()})
    places = {digest: place for place, digest in enumerate(digests)}
    return {
        "prompts": digests,
        "metrics": {
            name: {
                "prompts": [places[str(prompt)] for prompt in each.prompts or ()],
                "values": _rounded(each.values),
                **({"weights": _rounded(each.weights)} if each.weights else {}),
            }
            for name, each in known.items()
        },
    }


def _rounded(values: list[float]) -> list[float]:
    """With the nine digits that a float32 has."""
    return [float(f"{value:.9g}") for value in values]
