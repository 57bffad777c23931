"""A global batch: the rows of one optimizer step, laid out as forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Row, count_sequence_tokens
from ..distributed import collectives, ranks
from ..engine.layout import ForwardBatch
from ..engine.logprobs import TokenLogprobs
from ..models.device import move
from .workers import PickledWhole

if TYPE_CHECKING:
    from .objective import Objective


@dataclass
class GlobalBatch(PickledWhole):
    """The rows of one optimizer step: this process's forward passes, and what the loss needs of all rows."""

    passes: list[ForwardBatch]  # with a gradient; of this process
    num_rows: int  # of all processes
    columns: dict[str, Tensor]  # [rows, ...] each
    # without a gradient; they only inform the loss
    aux_passes: list[ForwardBatch] = field(default_factory=list)
    aux_stats: dict[str, Tensor] = field(default_factory=dict)  # scalars computed from the auxiliary passes
    row_indices: list[int] = field(default_factory=list)  # of the rows, among those to train on
    num_tokens: int = 0  # of all processes, a prompt counted with each of its answers
    is_first_step: bool = False  # the policy is still its own reference

    def to(self, device: torch.device | str, **_: Any) -> GlobalBatch:
        """The same on `device`."""
        return replace(
            self,
            passes=[batch.to(device) for batch in self.passes],
            aux_passes=[batch.to(device) for batch in self.aux_passes],
            columns={name: move(values, device) for name, values in self.columns.items()},
        )


def collate(objective: Objective, rows: Sequence[Row], indices: Sequence[int] = ()) -> GlobalBatch:
    """Lay out the rows of a global batch. Runs in a data loader's worker too, and gives the same there."""
    engine = objective.context.engine
    sequences = [sequence for row in rows for sequence in objective.score_inputs(row)]
    return GlobalBatch(
        passes=engine.local_batches(sequences),
        num_rows=len(rows),
        num_tokens=sum(map(count_sequence_tokens, rows)),
        columns=objective.batch_columns(rows),
        aux_passes=engine.local_batches(objective.aux_sequences(rows)),
        row_indices=list(indices),
    )


def gather_outputs(
    passes: Sequence[ForwardBatch], outputs: Sequence[TokenLogprobs], device: torch.device
) -> TokenLogprobs:
    """The outputs of all processes' passes as one, detached; `passes` and `outputs` are this process's."""
    own = [output.detach() for output, batch in zip(outputs, passes, strict=True) if not batch.is_filler]
    if ranks.world_size() == 1:
        return TokenLogprobs.cat(own)
    everyone = collectives.all_gather([output.to("cpu") for output in own])
    return TokenLogprobs.cat([output for theirs in everyone for output in theirs]).to(device)
