"""action=evaluate: measures of models that exist. Nothing is trained, and nothing of a run is changed.

What needs no torch comes first: mistakes are reported before it is imported.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console

from ..config import Action, Experiment, Measure, to_plain, to_yaml
from ..config.dotted import flatten
from ..distributed import ranks
from ..distributed.environment import settle_environment
from ..distributed.launch import is_run_leader
from ..evaluation import candidates as finding
from ..evaluation.candidates import Candidate
from ..evaluation.measures import MEASURES, MeasureContext
from ..evaluation.rows import HeldoutRows
from ..evaluation.subject import Subject, free, given_reference, load_subject
from ..report.render.evaluation import show_evaluation, write_evaluation_page
from ..report.study.evaluations import load_evaluation
from ..runtime import provenance
from ..runtime.command_line import typed_command
from ..runtime.errors import UserError, describe_error
from ..runtime.files import json_digest
from ..runtime.run_directory import EVALUATION, RunDirectory
from .evaluation_report import SETTINGS, Measured, tell_runs, track, write_results
from .method_scores import method_scores
from .train import prepare_libraries, require_encodable


def run_evaluation(spec: Experiment, run: RunDirectory) -> None:
    """Measure the models of eval.models and leave a complete directory of the evaluation.

    Raises UserError for a mistake; the directory records any failure.
    """
    require_encodable(spec, run)
    settle_environment()
    console = Console()
    models, lines = finding.find_candidates(spec)
    reference = given_reference(spec)
    if ranks.is_launched():
        raise UserError("action=evaluate: runs in one process; start it without torchrun.")
    for measure in spec.eval.measures:
        _check(spec, models, measure)
    data_spec, told = rows_of(spec, models)
    rows = HeldoutRows(data_spec)
    if reads_rows(spec):
        rows.heldout(rows.format)  # the data is read: a mistake in it comes before anything is loaded
        lines = [*lines, told]
    evaluation_id = identity(spec, rows, models, reference)
    run.require_own()
    if _is_done(run, evaluation_id):
        console.print(
            f"{run.path}: this evaluation is finished; give another directory to do it again.",
            highlight=False,
            soft_wrap=True,
        )
        return
    for measure in spec.eval.measures:
        MEASURES[measure].check_rows(spec, rows)
    with _recorded(spec, run, evaluation_id):
        for line in (f"evaluation {evaluation_id} in {run.path}", *lines):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        provenance.record_attempt(run.provenance_file, run.state().get("attempts", 1), 0)
        context = MeasureContext(spec, rows, console, method_scores)
        measured = [_measure(spec, each, reference, context) for each in models]
        write_results(spec, run, evaluation_id, measured, rows)
    write_evaluation_page(run.page_file, load_evaluation(run))
    tell_runs(run, measured)
    track(spec, run, console)
    show_evaluation(load_evaluation(run), console, run.page_file)


def check_after(spec: Experiment) -> None:
    """Raise UserError where eval.after names what cannot be measured here, before anything is trained."""
    if spec.action is Action.train:
        for measure in spec.eval.after:
            _check(spec, [], measure)


def _check(spec: Experiment, models: Sequence[Candidate], measure: Measure) -> None:
    """Raise UserError where the measure has nothing to measure, or cannot measure these models."""
    key = {Measure.preference: "rows", Measure.perplexity: "rows", Measure.generate: "generations"}.get(
        measure
    )
    if key and not getattr(spec.eval, key):
        raise UserError(f"eval.{key}=0: {measure.name} has nothing to measure; set it above 0.")
    MEASURES[measure].check(spec, models, measure)


def evaluate_after(spec: Experiment, run: RunDirectory) -> None:
    """The last stage of a run that is finished: eval.after, of the model that it saved, in its own folder.

    One process does so, whatever the run had; under torchrun, whose processes have ended but one, it is left
    to a command of its own.
    """
    if spec.action is not Action.train or not spec.eval.after or not is_run_leader(spec.parallel):
        return
    if ranks.is_launched() and ranks.world_size() > 1:
        names = ",".join(measure.name for measure in spec.eval.after)
        command = f"{typed_command()} action=evaluate eval.models=[{run.path}] eval.measures=[{names}]"
        print(f"eval.after: not under torchrun; afterwards: {command}", file=sys.stderr)
        return
    settings = replace(
        spec.eval, models=[str(run.path)], measures=list(spec.eval.after), after=[], own_data=True
    )
    after = replace(spec, action=Action.evaluate, eval=settings)
    run_evaluation(after, RunDirectory(run.path / "evaluation"))


def rows_of(spec: Experiment, models: Sequence[Candidate]) -> tuple[Experiment, str]:
    """The experiment whose held-out rows are measured, and a line that says which: those of the first run, or
    those that the command line names.
    """
    owner = next((each for each in models if each.run is not None), None)
    if owner is None or owner.run is None or spec.eval.own_data is False:
        return spec, f"rows: those held out of data={spec.data.name}"
    told = f"rows: those that {owner.run.path} held out (data={owner.spec.data.name}); other rows: data=..."
    return owner.spec, told


def reads_rows(spec: Experiment) -> bool:
    """Whether any of the measures looks at the data; a benchmark has prompts of its own."""
    return any(MEASURES[measure].reads_rows for measure in spec.eval.measures)


def identity(
    spec: Experiment, rows: HeldoutRows, models: Sequence[Candidate], reference: Candidate | None
) -> str:
    """Twelve hex digits of what is measured: the models by content, the rows, the measures' settings."""
    settings = to_plain(spec)["eval"]
    kept = {name: settings[name] for name in SETTINGS}
    kept |= {measure.name: settings.get(measure.name) for measure in spec.eval.measures}
    data_settings = to_plain(rows.spec)["data"] if reads_rows(spec) else {}
    made_of = {
        "kind": EVALUATION,
        "models": list(finding.identity_of(models)),
        "reference": reference.content() if reference else None,
        "data": {key: value for key, value in flatten(data_settings).items() if key != "name"},
        "rows": rows.splits(rows.format).digest if reads_rows(spec) else None,
        "eval": kept,
        "harnesses": {
            measure.name: part
            for measure in spec.eval.measures
            if (part := MEASURES[measure].made_of(spec, measure))
        },
    }
    return json_digest(made_of)[:12]


def _is_done(run: RunDirectory, evaluation_id: str) -> bool:
    """Whether this evaluation is finished there. Raises UserError where something else is."""
    state = run.state()
    if not state:
        return False
    if state.get("kind") != EVALUATION:
        raise UserError(
            f"{run.path}: is a training run, which an evaluation leaves as it is; give the evaluation a "
            "directory of its own: hydra.run.dir=DIRECTORY."
        )
    if state.get("id") != evaluation_id:
        raise UserError(
            f"{run.path}: holds another evaluation (of other models, measures, settings or rows); give this "
            "one a directory of its own: hydra.run.dir=DIRECTORY."
        )
    return state.get("state") == "finished"


@contextmanager
def _recorded(spec: Experiment, run: RunDirectory, evaluation_id: str) -> Iterator[None]:
    """Keep run.json true: running, then finished, or failed with the reason."""
    prepare_libraries()
    with run.locked():
        run.start_attempt(run_id=evaluation_id, spec=to_yaml(spec), kind=EVALUATION)
        try:
            yield
        except BaseException as error:
            run.fail(describe_error(error), resumable=isinstance(error, KeyboardInterrupt))
            raise
        run.finish()


def _measure(
    spec: Experiment, candidate: Candidate, reference: Candidate | None, context: MeasureContext
) -> Measured:
    """Load one model, and measure it."""
    length = max(context.rows.spec.data.max_length, spec.eval.perplexity.window or 0)
    longest = length + spec.eval.max_new_tokens
    measured = Measured(candidate)
    started = time.monotonic()
    read = {measure: MEASURES[measure].read(candidate, context) for measure in spec.eval.measures}
    subject: Subject | None = None
    for measure in spec.eval.measures:
        result = read[measure]
        if result is None:
            if subject is None:
                subject = load_subject(candidate, longest, context.console, reference)
                measured.seconds["load"] = round(time.monotonic() - started, 2)
                measured.reference = subject.reference_name
            started = time.monotonic()
            result = MEASURES[measure].run(subject, context)
        measured.seconds[measure.name] = round(time.monotonic() - started, 2)
        measured.results[measure] = context.done[candidate.name, measure] = result
        for line in result.lines:
            context.notify(f"{candidate.name}: {line}")
    if subject:
        free(subject)
    return measured
