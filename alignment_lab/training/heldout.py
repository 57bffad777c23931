"""Held-out rows, scored by the model as it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..config.metrics import EVAL
from ..distributed import ranks
from ..engine.logprobs import TokenLogprobs, evaluation_mode
from ..evaluation.intervals import Scores
from ..runtime.progress import progress_tracker
from .batch import GlobalBatch, collate, gather_outputs

if TYPE_CHECKING:
    from ..data import Row
    from .callbacks import Hooks
    from .context import TrainContext
    from .objective import Objective

T = TypeVar("T")


class Scored(Protocol):
    """What has held-out rows and an objective to score them with: a trainer, or a model that is measured."""

    context: TrainContext
    objective: Objective
    heldout_rows: Sequence[Row]
    hooks: Hooks

    @property
    def model(self) -> Any:
        """The model as it is now."""

    def check_stop(self) -> None:
        """Raise Interrupted after a signal."""


class HeldoutScorer:
    """Scores held-out rows as one global batch, in evaluation mode and without gradients."""

    def __init__(self, trainer: Scored) -> None:
        self.trainer = trainer

    def means(self) -> dict[str, float]:
        """The mean of each metric."""
        return {name: scores.mean for name, scores in self.scores().items()}

    def scores(self, *, initial: bool = False) -> dict[str, Scores]:
        """Every metric of the held-out rows, by TRL's names with `eval_`; `initial`: no step was taken
        yet.
        """
        trainer, rows = self.trainer, self.trainer.heldout_rows
        if not rows:
            return {}
        with evaluation_mode(trainer.model, trainer.context.dtype):
            values = trainer.objective.initial_heldout_values(rows) if initial else None
            if values is not None:
                scores = trainer.objective.as_scores(values, rows)
            else:
                outputs, batch = self.outputs()
                if initial:
                    rows = trainer.heldout_rows = trainer.objective.with_initial_logps(rows, outputs)
                scores = trainer.objective.heldout_scores(outputs, batch, rows)
            scores |= trainer.objective.pair_scores(initial=initial)
        return {f"{EVAL}{name}": metric_scores for name, metric_scores in scores.items()}

    def outputs(self) -> tuple[TokenLogprobs, GlobalBatch]:
        """The outputs for all held-out rows, in their order, and their batch."""
        trainer, context = self.trainer, self.trainer.context
        batch = collate(trainer.objective, trainer.heldout_rows).to(context.device)
        with evaluation_mode(trainer.model, context.dtype):
            batch.aux_stats = trainer.objective.aux_stats(batch)
            outputs = [
                trainer.objective.forward(trainer.model, one)
                for one in self.watch("held-out rows")(batch.passes)
            ]
        return gather_outputs(batch.passes, outputs, context.device).in_order(), batch

    def watch(self, label: str) -> Callable[[Sequence[T]], Iterable[T]]:
        """Goes through a sequence with a progress bar and a heartbeat.

        A single process may stop between any two items; several stop together, at the end.
        """
        trainer = self.trainer

        def iterate(items: Sequence[T]) -> Iterator[T]:
            for item in progress_tracker(label, trainer.context.console)(items):
                yield item
                trainer.hooks.heartbeat()
                if ranks.world_size() == 1:
                    trainer.check_stop()

        return iterate
