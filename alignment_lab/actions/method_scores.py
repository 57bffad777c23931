"""What a run's own method measures of held-out rows, of a model that is only measured: the figures of its
report.json, by the same code, without a trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import data
from ..config import Experiment, Format
from ..config.metrics import EVAL
from ..data import Row
from ..data.tokenization import tokenize_pairs
from ..models.tokenizer import tokenizer_digest
from ..runtime.errors import UserError

if TYPE_CHECKING:
    from ..evaluation.intervals import Scores
    from ..evaluation.measures import MeasureContext
    from ..evaluation.subject import Subject
    from ..training import Hooks, Objective, TrainContext

OF_TRAINING = ("loss", "shift")  # what rests on numbers that training adds up, where a method has such


def method_scores(subject: Subject, context: MeasureContext) -> tuple[dict[str, Scores], Sequence[Row]]:
    """The metrics of the subject's own method on the held-out rows, with its reference's log-probabilities,
    and the rows.

    Raises UserError where the method needs a reference and there is none.
    """
    from ..data import with_columns
    from ..methods import objective_class
    from ..training.heldout import HeldoutScorer

    spec = replace(
        context.rows.spec,
        method=subject.candidate.spec.method,
        model=subject.candidate.spec.model,
        parallel=subject.candidate.spec.parallel,
        eval=context.spec.eval,
    )
    train_context = _context(spec, subject, context)
    scores: dict[str, Scores] = {}
    objective = objective_class(spec.method)(train_context)
    scored = _Scored(train_context, objective, objective.prepare_rows(train_context.heldout_rows))
    if subject.reference_name is not None:
        with subject.reference(context.console) as reference:
            _use(train_context, reference)
            columns = objective.reference_columns(scored.heldout_rows)
            scored.heldout_rows = with_columns(scored.heldout_rows, columns)
            scores = HeldoutScorer(scored).scores(initial=True)
        _use(train_context, subject)
    elif getattr(spec.method, "needs_reference", False):
        raise UserError(
            f"{subject.name}: the loss of method={spec.method.name} is measured from its initial policy, "
            "which is not on this machine; name it with eval.reference=MODEL."
        )
    if not (subject.candidate.is_initial and subject.given_reference is None):  # else these are its own
        scores = HeldoutScorer(scored).scores()
    if objective.state_dict():  # a mean over the steps of training, which a model does not have
        context.notify(
            f"{subject.name}: no loss: that of method={spec.method.name} rests on training's steps"
        )
        scores = {name: each for name, each in scores.items() if name.removeprefix(EVAL) not in OF_TRAINING}
    rows = train_context.scored_pairs if spec.method.format is Format.conversation else scored.heldout_rows
    return scores, rows


@dataclass
class _Scored:
    """A model and its objective, in place of a trainer."""

    context: TrainContext
    objective: Objective
    heldout_rows: Sequence[Row]
    hooks: Hooks = field(default_factory=lambda: _no_hooks())

    @property
    def model(self) -> Any:
        return self.context.model

    def check_stop(self) -> None:
        """A signal ends an evaluation at once: there is nothing to save."""


def _no_hooks() -> Hooks:
    from ..training import Hooks

    return Hooks()


def _use(context: TrainContext, subject: Subject) -> None:
    """Compute with this model from here on."""
    context.model, context.engine, context.weights_digest = subject.model, subject.engine, subject.digest


def _context(spec: Experiment, subject: Subject, context: MeasureContext) -> TrainContext:
    from ..training import TrainContext

    rows, format = context.rows, spec.method.format
    heldout = rows.tokenized(subject, format, spec.eval.rows)
    splits = rows.splits(format)
    limit = data.max_train_groups(spec)
    train = data.take_groups(splits.train, limit) if limit else splits.train
    made = TrainContext(
        spec,
        subject.model,
        subject.tokenizer,
        train,
        heldout,
        len(train),
        None,
        subject.device,
        subject.dtype,
        max_tokens=subject.max_tokens,
        gradient_checkpointing=False,
        console=context.console,
        heldout_pairs=_pairs(subject, heldout, rows.spec) if format is Format.conversation else [],
    )
    _use(made, subject)
    return made


def _pairs(subject: Subject, heldout: Sequence[Row], spec: Experiment) -> Sequence[Row]:
    """Held-out conversations that come from pairs, as pairs: once each."""
    known: dict[str, Row] = {}
    for row in heldout:
        if "rejected" in row:
            known.setdefault(repr((row["prompt"], row["rejected"])), row)
    if not known:
        return []
    limit = (spec.data.max_length, spec.data.truncation)
    digest = tokenizer_digest(subject.tokenizer)
    found = data.tokenize_cached(tokenize_pairs, subject.tokenizer, digest, list(known.values()), *limit)
    return found.rows
