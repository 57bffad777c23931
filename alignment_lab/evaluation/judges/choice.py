"""Which judge the settings name: found and checked before anything is loaded, opened when it is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import Experiment, JudgeKind
from ...config.validation import SpecError
from ...content.files import CONFIG
from ...runtime.errors import UserError
from ...runtime.files import read_json
from ..candidates import Candidate, find_candidate
from .endpoint import EndpointJudge
from .local import ChatJudge, RewardJudge
from .rubric import RUBRIC

if TYPE_CHECKING:
    from rich.console import Console

KEY = "eval.winrate.judge_model"
SHAPE = ("model_type", "vocab_size")  # of a config: what models of one family share


@dataclass(frozen=True)
class Family:
    """The models that a judge may favor: of its kind and vocabulary, or, behind an endpoint, of its name."""

    shape: tuple[Any, ...] | None = None
    name: str = ""

    def holds(self, candidate: Candidate) -> bool:
        """Whether a model is one of them."""
        shape = _shape(candidate)
        if self.shape is not None:
            return shape == self.shape
        kind = re.match(r"[a-z]+", str(shape[0] or "").lower())
        return kind is not None and kind[0] in self.name.lower()


def find_judge(spec: Experiment) -> Candidate | None:
    """The local judge; None for an endpoint. Raises SpecError or UserError where there is no such judge."""
    settings = spec.eval.winrate
    if settings.judge_model is None:
        raise SpecError(
            f"{KEY}=null: eval.winrate.judge={settings.judge.name} needs one; name a reward model, a "
            "chat model, or the name of an endpoint's model."
        )
    if settings.judge is JudgeKind.endpoint:
        return None
    found = find_candidate(spec, settings.judge_model, KEY)
    if settings.judge is JudgeKind.reward and not found.is_reward_model:
        raise UserError(
            f"{KEY}={settings.judge_model}: is no reward model, as eval.winrate.judge=reward needs; give "
            "a run of method=reward, or set eval.winrate.judge=chat."
        )
    if settings.judge is JudgeKind.chat and found.is_reward_model:
        raise UserError(
            f"{KEY}={settings.judge_model}: is a reward model, and reads no rubric; set "
            "eval.winrate.judge=reward."
        )
    return found


def require_impartial(judge: Candidate | None, spec: Experiment, contestants: Sequence[Candidate]) -> None:
    """Refuse a judge that is itself one of the contestants. Raises UserError."""
    named = spec.eval.winrate.judge_model
    for each in contestants:
        if judge is not None and made_of(judge) == made_of(each):
            raise UserError(
                f"{KEY}={named}: has the same weights as {each.name}, whose answers it would judge; name "
                "another judge."
            )
        if judge is None and named in (each.name, Path(each.name).name):
            raise UserError(f"{KEY}={named}: has the name of a contestant, {each.name}; name another judge.")


def made_of(candidate: Candidate) -> tuple[Any, Any]:
    """The digests of its weights and of its adapter."""
    content = candidate.content()
    return content["weights"], content["adapter"]


def read_rubric(spec: Experiment) -> str:
    """What a better answer is, in words. Raises UserError where its file cannot be read."""
    named = spec.eval.winrate.rubric
    if named is None:
        return RUBRIC
    try:
        text = Path(named).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"eval.winrate.rubric={named}: cannot be read ({error}); give a text file.") from None
    if not text:
        raise UserError(f"eval.winrate.rubric={named}: is empty; write there what a better answer is.")
    return text


def family_of(spec: Experiment) -> Family:
    """Whom the judge may favor."""
    judge = find_judge(spec)
    return Family(name=str(spec.eval.winrate.judge_model)) if judge is None else Family(_shape(judge))


def _shape(candidate: Candidate) -> tuple[Any, ...]:
    config = read_json(candidate.base / CONFIG) or {}
    return tuple(config.get(name, (config.get("text_config") or {}).get(name)) for name in SHAPE)


def open_judge(spec: Experiment, console: Console) -> EndpointJudge | RewardJudge | ChatJudge:
    """The judge of the settings."""
    candidate = find_judge(spec)
    if candidate is None:
        return EndpointJudge(spec.eval.winrate, read_rubric(spec), console)
    if spec.eval.winrate.judge is JudgeKind.reward:
        return RewardJudge(candidate, console)
    return ChatJudge(candidate, read_rubric(spec), console)
