"""The content of report.json: what a run came to."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from .. import data
from ..config import Format
from ..runtime.attempts import closed_attempt, total_cost
from ..runtime.files import utc_now
from ..runtime.redaction import redact
from .row_counts import count_rows

if TYPE_CHECKING:
    from ..training import TrainContext, Trainer
    from .tokenized import TokenizedData
    from .training_process import CostMeter


def report(
    trainer: Trainer, tokens: TokenizedData, meter: CostMeter, metrics: dict[str, Any]
) -> dict[str, Any]:
    """report.json: what the run came to, over all of its attempts.

    Tokens are those of the rows, however the engine lays them out; those of a step that was taken again count
    once, and its seconds count each time.
    """
    context, spec, steps = trainer.context, trainer.context.spec, trainer.state.step
    seen = round(steps * context.tokens_per_step)
    state = {"started": utc_now(), **meter.run.state()}
    this = closed_attempt({**state, "ended": utc_now(), "cost": meter.measure(trainer)}, steps, 0.0)
    attempts = [*state.get("history", []), this]
    costs = total_cost(attempts)
    return {
        "id": spec.run_id,
        "name": spec.name,
        "method": spec.method.name,
        "model": spec.model.name,
        "data": spec.data.name,
        "dtype": str(context.dtype).removeprefix("torch."),
        "rows": _rows(context, tokens),
        "steps": steps,
        "tokens": seen,
        "shortcuts": _shortcuts(context, tokens.splits),
        **costs,
        "tokens_per_second": round(seen / costs["seconds"]["train"], 1),
        "attempts": attempts,
        "metrics": metrics,
    }


def _rows(context: TrainContext, tokens: TokenizedData) -> dict[str, Any]:
    """How many rows there were, counted as `counted` says, and what became of the others."""
    splits, counts = tokens.splits, tokens.counts
    what = "answers" if context.spec.method.format is Format.unpaired else "sequences"
    if context.spec.method.format is Format.text:
        trained = {
            "counted": "blocks of texts", "train": len(context.train_rows), "available": context.available,
            "eval": len(context.scored_rows), "texts": counts.train,
        }  # fmt: skip
    else:
        trained = {
            "counted": "rows as they were read: a pair is one", "train": counts.train,
            "available": counts.available, "eval": count_rows(context.scored_rows),
            what: len(context.train_rows),
        }  # fmt: skip
    return trained | {
        "dropped": dict(splits.dropped),
        "clean": splits.cleaned,
        "reasons": data.count_reasons(splits.quarantine),
        "sources": {redact(counts.name): counts.as_dict() for counts in splits.sources},
        "truncated": splits.truncated,
    }


def _shortcuts(context: TrainContext, splits: data.Splits) -> list[dict[str, Any]]:
    """What rules of form, and of the words of as many training pairs as the run had, make of the held-out
    pairs that it was measured on.
    """
    train = islice(splits.train, len(context.train_rows))
    heldout = context.heldout_pairs or context.scored_rows
    return [asdict(found) for found in data.shortcuts(heldout, train)]
