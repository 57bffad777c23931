"""The win rate: settings of the measure and of its judge, inside of the eval group."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..validation import require, require_nonnegative, require_positive

JudgeKind = Enum("JudgeKind", ["reward", "chat", "endpoint"])
LengthPenalty = Enum("LengthPenalty", ["none", "cross_validated"])
OF_KIND = {  # the settings that one kind of judge alone has
    "rubric": (JudgeKind.chat, JudgeKind.endpoint),
    "endpoint": (JudgeKind.endpoint,),
    "auth_variable": (JudgeKind.endpoint,),
    "concurrency": (JudgeKind.endpoint,),
    "retries": (JudgeKind.endpoint,),
    "timeout": (JudgeKind.endpoint,),
}


@dataclass
class WinrateMeasure:
    """Answers beside a baseline's: which is better, by a judge that stands trial first."""

    # reward: a reward model scores both; chat: a local model reads a rubric, and the probabilities of its
    # letters are the verdict; endpoint: a model behind an OpenAI-compatible interface
    judge: JudgeKind = JudgeKind.chat
    judge_model: str | None = None  # a run, a checkpoint, a folder, a Hub id; of an endpoint the model's name
    # whose answers are compared with: a run, a model, or a file of answers; null: the data's own answers
    baseline: str | None = None
    rubric: str | None = None  # a file with what a better answer is, in words; null: the lab's own
    trial_prompts: int = 32  # that the judge is tried on
    # of the regression of length control; cross_validated: as alpaca_eval has it, for figures beside its own
    length_penalty: LengthPenalty = LengthPenalty.none
    endpoint: str = "https://api.openai.com/v1"
    auth_variable: str = "OPENAI_API_KEY"  # the environment's variable that holds the key; it may be empty
    concurrency: int = 8  # questions that wait for an answer at the same time
    retries: int = 5  # after a rate limit, a failure, a broken connection, or a verdict that is none
    timeout: float = 120.0  # seconds

    def __post_init__(self) -> None:
        require_positive("eval.winrate", self, "concurrency", "timeout")
        require_nonnegative("eval.winrate", self, "retries")
        few = "must be 8 or more: fewer prove nothing of a judge."
        require(self.trial_prompts >= 8, "eval.winrate.trial_prompts", self.trial_prompts, few)
        is_url = self.endpoint.startswith(("http://", "https://"))
        remedy = "must be the URL of an interface, such as http://localhost:8000/v1."
        require(is_url, "eval.winrate.endpoint", self.endpoint, remedy)
