"""What a method adds to the loop: which sequences of a row are scored, and what their log-probabilities
cost.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..config.metrics import metric
from ..engine.logprobs import TokenLogprobs, token_logprobs
from ..evaluation.intervals import Scores
from ..evaluation.prompts import prompt_digest

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Row
    from ..engine.layout import ForwardBatch
    from ..engine.packing import ScoredSequence
    from .batch import GlobalBatch
    from .context import TrainContext


class Objective:
    """The base of every method. Subclasses give at least `score_inputs` and `loss_and_metrics`."""

    logprob_options: Mapping[str, bool] = {}  # keywords of `token_logprobs`

    def __init__(self, context: TrainContext) -> None:
        self.context = context

    def score_inputs(self, row: Row) -> list[ScoredSequence]:
        """The sequences of a row that are scored."""
        raise NotImplementedError

    def loss_and_metrics(self, outputs: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """`loss` and every metric that `spec.method.metrics` names, one value per row among those in
        `outputs`.

        The loss of a step is the mean of `loss` over all rows of the batch.
        """
        raise NotImplementedError

    def batch_columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """What else the loss needs of each row: [rows, ...] by name."""
        return {}

    def aux_sequences(self, rows: Sequence[Row]) -> list[ScoredSequence]:
        """Sequences that are scored without a gradient, to inform the loss of the whole batch."""
        return []

    def aux_stats(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """Scalars for the loss of a batch, by name, computed before its first pass and without a gradient."""
        return {}

    def prepare_rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows with what the objective adds to them, from these rows alone."""
        return rows

    def reference_columns(self, rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
        """What only the initial policy can say of each row, None where it has nothing to say. Called once,
        before the first step.
        """
        return {}

    def groups(self, rows: Sequence[Row]) -> tuple[list[list[int]], list[Hashable]]:
        """Groups of indices that an epoch keeps together, and the kind of each: see GlobalBatchSampler."""
        return [[index] for index in range(len(rows))], [0] * len(rows)

    def forward(self, model: torch.nn.Module, batch: ForwardBatch) -> TokenLogprobs:
        """One forward pass."""
        return token_logprobs(model, batch, **self.logprob_options)

    def observe(self, metrics: Mapping[str, Tensor]) -> None:
        """Take note of a training pass's metrics, for steps to come."""

    def derive(self, logged: dict[str, float]) -> None:
        """Add to a step's logged means what follows from them."""

    # Held-out rows.

    def heldout_values(
        self, outputs: TokenLogprobs, batch: GlobalBatch, rows: Sequence[Row]
    ) -> dict[str, Tensor]:
        """The metrics of held-out rows, one value per row, in the order of the rows, as `outputs` are."""
        return self.loss_and_metrics(outputs, batch)

    def with_initial_logps(self, rows: Sequence[Row], outputs: TokenLogprobs) -> list[Row]:
        """Held-out rows with what later measurements are compared with: `outputs` are the initial policy's,
        in the order of the rows.
        """
        return list(rows)

    def initial_heldout_values(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        """The same of the initial policy, where the reference's log-probabilities tell them; None: score the
        rows.
        """
        return None

    def heldout_scores(
        self, outputs: TokenLogprobs, batch: GlobalBatch, rows: Sequence[Row]
    ) -> dict[str, Scores]:
        """The metrics of held-out rows with what their intervals need."""
        return self.as_scores(self.heldout_values(outputs, batch, rows), rows)

    def rows_of_metric(self, name: str, rows: Sequence[Row]) -> Sequence[Row]:
        """Those of the rows, in their order, that have a value of this metric."""
        return rows

    def as_scores(self, values: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Scores]:
        """The values of held-out rows with the prompt of each; without where they are no row's."""
        digests = [prompt_digest(row) for row in rows]
        scores = {}
        for name, numbers in values.items():
            owners = self.rows_of_metric(name, rows)
            prompts = digests if owners is rows else [prompt_digest(row) for row in owners]
            known = prompts if len(prompts) == len(numbers) else None
            scores[name] = Scores(numbers.tolist(), share=metric(name).is_share, prompts=known)
        return scores

    def pair_scores(self, *, initial: bool) -> dict[str, Scores]:
        """What is measured of held-out pairs besides the rows; `initial`: no step was taken yet."""
        return {}

    # What a checkpoint keeps.

    def state_dict(self) -> dict[str, Any]:
        """What the objective remembers between steps, as JSON. Every process together; the main process's is
        kept.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, on every process."""
