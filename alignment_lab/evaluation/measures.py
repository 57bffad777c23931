"""The table of measures: what `eval.measures` may name, and what computes each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import Experiment, Measure
from ..runtime.errors import UserError
from .candidates import Candidate
from .harnesses import measures as harnesses
from .results import MeasureResult
from .rows import HeldoutRows
from .subject import Subject

if TYPE_CHECKING:
    from rich.console import Console

    from ..data import Row
    from .intervals import Scores


@dataclass
class MeasureContext:
    """What a measure may ask for besides its subject: settings, rows, and what was measured before it."""

    spec: Experiment  # of the command: `spec.eval` has a node of settings for each measure
    rows: HeldoutRows  # the same for all subjects
    console: Console
    # what a run's own method measures of held-out rows, and the rows: handed in, as methods lie above
    method_scores: Callable[[Subject, MeasureContext], tuple[dict[str, Scores], Sequence[Row]]]
    # of this subject and of those before it, by the subject's name and the measure
    done: dict[tuple[str, Measure], MeasureResult] = field(default_factory=dict)
    shared: dict[Measure, Any] = field(default_factory=dict)  # what a measure made for all subjects

    def notify(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _preference(subject: Subject, context: MeasureContext) -> MeasureResult:
    from .preference import measure_preference

    return measure_preference(subject, context)


def _perplexity(subject: Subject, context: MeasureContext) -> MeasureResult:
    from .perplexity import measure_perplexity

    return measure_perplexity(subject, context)


def _generate(subject: Subject, context: MeasureContext) -> MeasureResult:
    from .generated import measure_generated

    return measure_generated(subject, context)


def _winrate(subject: Subject, context: MeasureContext) -> MeasureResult:
    from .judged import measure_winrate

    return measure_winrate(subject, context)


def _check_winrate(spec: Experiment, candidates: Sequence[Candidate], measure: Measure) -> None:
    from .contest import check_winrate

    _of_language_models(spec, candidates, measure)
    check_winrate(spec, candidates)


def _check_winrate_rows(spec: Experiment, rows: HeldoutRows) -> None:
    from .contest import check_rows

    check_rows(spec, rows)


def _winrate_made_of(spec: Experiment, measure: Measure) -> Any:
    from .contest import made_of_contest

    return made_of_contest(spec)


def _of_language_models(spec: Experiment, candidates: Sequence[Candidate], measure: Measure) -> None:
    """Raise UserError where one of the models is a reward model, which writes nothing."""
    for each in candidates:
        if each.is_reward_model:
            raise UserError(
                f"eval.measures={measure.name}: {each.name} is a reward model, which scores answers and "
                "writes none; give language models, or eval.measures=[preference]."
            )


def _in_a_harness(spec: Experiment, candidates: Sequence[Candidate], measure: Measure) -> None:
    """Raise UserError for a reward model, and for what the harness lacks."""
    _of_language_models(spec, candidates, measure)
    harnesses.check(spec, candidates, measure)


def _any_model(spec: Experiment, candidates: Sequence[Candidate], measure: Measure) -> None:
    """Every model can be measured."""


@dataclass(frozen=True)
class MeasureRow:
    """One row of the table."""

    run: Callable[[Subject, MeasureContext], MeasureResult]
    # raises UserError for a mistake; before any model is loaded
    check: Callable[[Experiment, Sequence[Candidate], Measure], None] = _of_language_models
    # a result that is read from a file and needs no model, where there is one
    read: Callable[[Candidate, MeasureContext], MeasureResult | None] = lambda candidate, context: None
    # what the figures depend on besides settings, models and rows: files by content, versions of packages
    made_of: Callable[[Experiment, Measure], Any] = lambda spec, measure: None
    # as `check`, of the rows
    check_rows: Callable[[Experiment, HeldoutRows], None] = lambda spec, rows: None
    reads_rows: bool = True  # of the data: held-out rows or their prompts
    verdicts: str | None = (
        None  # its setting that names files with verdicts on answers: models may differ in it
    )


def _harness(run: Callable[[Subject, MeasureContext], MeasureResult], **options: Any) -> MeasureRow:
    return MeasureRow(run, _in_a_harness, made_of=harnesses.made_of, reads_rows=False, **options)


MEASURES: dict[Measure, MeasureRow] = {
    Measure.preference: MeasureRow(_preference, check=_any_model),
    Measure.perplexity: MeasureRow(_perplexity),
    Measure.generate: MeasureRow(_generate),
    Measure.winrate: MeasureRow(
        _winrate, _check_winrate, check_rows=_check_winrate_rows, made_of=_winrate_made_of
    ),
    Measure.lm_eval: _harness(harnesses.run_lm_eval),
    Measure.ifbench: _harness(harnesses.run_ifbench),
    Measure.mt_bench: _harness(harnesses.run_mt_bench, read=harnesses.read_mt_bench, verdicts="judgments"),
    Measure.alpaca_eval: _harness(
        harnesses.run_alpaca_eval, read=harnesses.read_alpaca_eval, verdicts="annotations"
    ),
}
