"""Log-probabilities of the reference, computed once before training: the reference is the policy as it starts.

They become columns of the rows, so that no second model is ever in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .logprobs import Progress, completion, score

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Row = dict[str, Any]
ANSWERS = ("chosen", "rejected")
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names


def score_pairs(model: PreTrainedModel, rows: list[Row], batch: int, dtype: torch.dtype, progress: Progress) -> dict[str, torch.Tensor]:
    """log p(answer | prompt) under `model`, by answer: {"chosen": [N] nats, "rejected": [N] nats}. `batch` counts pairs."""
    both = [completion(row["prompt_ids"], row[f"{answer}_ids"]) for row in rows for answer in ANSWERS]
    sums = score(model, both, 2 * batch, dtype, progress).sums.view(-1, 2)  # [N, 2]
    return dict(zip(ANSWERS, sums.unbind(1), strict=True))


def attach(model: PreTrainedModel, rows: list[Row], batch: int, dtype: torch.dtype, progress: Progress) -> list[Row]:
    """The rows with COLUMNS, in nats."""
    if not rows:
        return rows
    found = score_pairs(model, rows, batch, dtype, progress)
    columns = zip(*(found[answer].tolist() for answer in ANSWERS), strict=True)
    return [{**row, **dict(zip(COLUMNS, values, strict=True))} for row, values in zip(rows, columns, strict=True)]
