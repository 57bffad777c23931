"""lm-evaluation-harness on a loaded model, through its own HFLM: its prompts, its scoring, its figures.

HFLM, and no model of ours over the engine: so that prompts are cut, encoded and padded by the same code as in
`lm_eval --model hf --model_args pretrained=FOLDER`, and the figures are the same. The model is not loaded
again; it computes as plain transformers does, since it is called without a packed layout.
Gao et al., https://doi.org/10.5281/zenodo.10256836.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.groups.harnesses import LmEval
from ...config.validation import did_you_mean
from ...distributed import collectives
from ...runtime.errors import UserError
from ...runtime.library_internals import without_tqdm
from ..intervals import Scores

if TYPE_CHECKING:
    import torch

TASKS_KEY, FOLDER_KEY = "eval.lm_eval.tasks", "eval.lm_eval.include_path"
ALL_ANSWERS = "none"  # lm-eval's name of the filter that changes nothing
LEFT_OUT = (
    "samples",
    "pretty_env_info",
    "git_hash",
    "upper_git_hash",
)  # of its results: large, or of this machine


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data, ready to be run on any model."""

    found: dict[str, Any]  # what lm-eval's TaskManager.load gave: tasks and groups by name


_loaded: dict[tuple[str, Path], Tasks] = {}  # of the last settings: a command has one


@dataclass(frozen=True)
class LmEvalResult:
    """What lm-eval found."""

    scores: dict[str, Scores]  # of every metric that is a mean over documents
    table: list[dict[str, Any]]  # its results table, every metric
    results: dict[str, Any]  # all that it says of the tasks, their settings and its version; no documents


def load_tasks(settings: LmEval) -> Tasks:
    """Find the tasks by name or pattern and read their data, before any model is loaded; once for all models.

    Raises UserError for one that is not there, cannot be read, or executes what a model writes.
    """
    key = (repr(settings), Path.cwd())
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _find_tasks(settings)
    return _loaded[key]


def _find_tasks(settings: LmEval) -> Tasks:
    folder = settings.include_path
    if not settings.tasks:
        raise UserError(
            f"{TASKS_KEY}=[]: name some, as `lm_eval ls tasks` lists them: {TASKS_KEY}=[arc_easy]."
        )
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"{FOLDER_KEY}={folder}: there is no such folder; give one with task files.")
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager = _index(TaskManager, settings)
        names = list(
            dict.fromkeys(name for task in settings.tasks for name in _matches(manager, task, folder))
        )
        found = _load(manager, names)
    unsafe = [name for name, task in found["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not settings.confirm_run_unsafe_code:
        raise UserError(
            f"{TASKS_KEY}: {unsafe[0]} executes what the model writes; leave it out, or allow that with "
            "eval.lm_eval.confirm_run_unsafe_code=true."
        )
    return Tasks(found)


def _index(task_manager: Any, settings: LmEval) -> Any:
    """The index of task files: of one's own folder alone where it has all, without groups that name others.

    lm-eval's own 14,000 take seconds to read.
    """
    if settings.include_path is not None:
        own = task_manager(include_path=settings.include_path, include_defaults=False)
        if set(settings.tasks) <= set(own.all_subtasks):
            return own
    return task_manager(include_path=settings.include_path)


def _matches(manager: Any, name: str, folder: str | None) -> list[str]:
    """The tasks of this name or pattern. Raises UserError where there are none."""
    found: list[str] = manager.match_tasks([name])
    if not found:
        beside = f" nor a task file of {FOLDER_KEY}={folder}" if folder else ""
        hint = did_you_mean(name, manager.all_tasks) or "; `lm_eval ls tasks` lists them."
        raise UserError(f"{TASKS_KEY}=[{name}]: it is no task of lm-eval{beside}{hint}")
    return found


def _load(manager: Any, names: list[str]) -> dict[str, Any]:
    """Tasks with their data. Raises UserError for the first that cannot be loaded, in its own words."""
    try:
        return dict(manager.load(names))
    except Exception as whole:  # code and files of tasks may raise anything
        for name in names:
            try:
                manager.load([name])
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                raise UserError(
                    f"{TASKS_KEY}=[{name}]: it cannot be loaded ({reason}); its data come from the Hub or "
                    "from files that its task file names: connect once, or give a task file of local data by "
                    f"{FOLDER_KEY}."
                ) from error
        raise UserError(f"{TASKS_KEY}: {str(whole).splitlines()[0]}; leave one of them out.") from whole


def run_tasks(model: Any, tokenizer: Any, dtype: torch.dtype, tasks: Tasks, settings: LmEval) -> LmEvalResult:
    """Run the tasks on a model; several processes each run all of them."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        wrapped = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # it sets a padding token
            batch_size=settings.batch_size,
            mixed_precision_dtype=dtype if is_mixed(model, dtype) else None,
        )
        _prepare(tasks.found["tasks"], settings)
        try:
            results = evaluate(
                wrapped,
                tasks.found,
                limit=settings.limit,
                system_instruction=settings.system_instruction,
                apply_chat_template=settings.apply_chat_template,
                fewshot_as_multiturn=settings.apply_chat_template,
                confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            )
        except AssertionError as error:
            if "max tokens to generate" not in str(error):
                raise
            raise UserError(
                f"{TASKS_KEY}: a task generates more tokens than the model's context of {wrapped.max_length} "
                "has room for; give fewer: eval.lm_eval.gen_kwargs={max_gen_toks:100}."
            ) from error
    return _to_result(collectives.broadcast(results))  # a process that is not the first of its node has none


def _prepare(tasks: Mapping[str, Any], settings: LmEval) -> None:
    """What `simple_evaluate` does before `evaluate`; it also asks the machine and the Hub what they are."""
    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.utils import set_torch_seed

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)
    for task in tasks.values():
        if settings.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(settings.gen_kwargs), update=True)
        asked, own = settings.num_fewshot, task.get_config("num_fewshot")
        if own is None or (asked is not None and own != 0):  # a task's 0 stays
            task.set_config(key="num_fewshot", value=asked or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def is_mixed(model: Any, dtype: torch.dtype) -> bool:
    """Whether float32 weights are computed with in another type."""
    return str(model.dtype) == "torch.float32" and str(dtype) != "torch.float32"


def command_by_hand(folder: str, model: Any, dtype: torch.dtype, device: str, settings: LmEval) -> str:
    """The command of lm-eval's own that gives the same figures of the exported model."""
    arguments = f"pretrained={folder},dtype={str(model.dtype).removeprefix('torch.')}"
    if is_mixed(model, dtype):
        arguments += f",mixed_precision_dtype={str(dtype).removeprefix('torch.')}"
    options: dict[str, Any] = {
        "model": "hf",
        "model_args": arguments,
        "tasks": ",".join(settings.tasks),
        "include_path": settings.include_path,
        "num_fewshot": settings.num_fewshot,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "device": device,
        "system_instruction": settings.system_instruction,
        "gen_kwargs": ",".join(f"{key}={value}" for key, value in settings.gen_kwargs.items()) or None,
    }
    words = [
        word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))
    ]
    flags = [
        f"--{name}" for name in ("apply_chat_template", "confirm_run_unsafe_code") if getattr(settings, name)
    ]
    return shlex.join(["lm_eval", *words, *flags])


def _to_result(results: Mapping[str, Any]) -> LmEvalResult:
    kept = {name: value for name, value in results.items() if name != "samples"}
    return LmEvalResult(
        scores=_scores(results),
        table=[*_table(results, "results"), *_table(results, "groups")],
        results={**json.loads(json.dumps(kept, default=str)), "lm_eval_version": version("lm_eval")},
    )


def _scores(results: Mapping[str, Any]) -> dict[str, Scores]:
    """One value per document of every metric that is the mean of its documents' values.

    A metric that is aggregated in another way (a corpus BLEU, a perplexity by word) is in the table alone.
    """
    scores = {}
    for task, found in results["results"].items():
        for name, value in found.items():
            metric, _, filtered = name.partition(",")
            documents = [
                document
                for document in results["samples"].get(task, ())
                if document["filter"] == filtered and _is_number(document.get(metric))
            ]
            values = [float(document[metric]) for document in documents]
            if not values or not _is_number(value) or not math.isclose(sum(values) / len(values), value):
                continue
            scores[_name(task, metric, filtered)] = Scores(
                values, share=set(values) <= {0.0, 1.0}, prompts=[each["doc_hash"] for each in documents]
            )
    return scores


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _name(task: str, metric: str, filtered: str) -> str:
    """`lm_eval/arc_easy/acc`, with the filter where there is one."""
    return "/".join(["lm_eval", task, metric, *([filtered] if filtered not in ("", ALL_ANSWERS) else [])])


def _table(results: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """lm-eval's table of results, of tasks or of groups: a row for each metric."""
    rows = []
    for task, found in results.get(part, {}).items():
        better = results.get("higher_is_better", {}).get(task, {})
        for name, value in found.items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = found.get(f"{metric}_stderr,{filtered}")
            rows.append(
                {
                    "task": str(found.get("alias", task)).strip(" -"),
                    "version": results.get("versions", {}).get(task),
                    "filter": filtered,
                    "n-shot": results.get("n-shot", {}).get(task),
                    "metric": metric,
                    "better": {True: "higher", False: "lower"}.get(better.get(metric), ""),
                    "value": float(value),
                    "stderr": float(error) if _is_number(error) else None,
                }
            )
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes that lm-eval logs, and without its bars where there is no terminal; errors stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if sys.stderr.isatty() else without_tqdm():
            yield
    finally:
        logger.setLevel(level)
