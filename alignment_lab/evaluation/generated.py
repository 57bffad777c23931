"""Answers that a model writes to held-out prompts: what they look like, and how far they are from those of
its reference, by sampling.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.metrics import SAMPLED, metric
from ..data import Row, prompt_messages
from ..runtime.text_counts import count_sentences, count_words
from .answers import is_correct
from .intervals import Scores
from .prompts import prompt_digest
from .results import MeasureResult

if TYPE_CHECKING:
    from ..engine.generation import Completion
    from .measures import MeasureContext
    from .subject import Subject

ANSWERS_FILE = "answers.jsonl"
RUN_LENGTH = 4  # words of a run that counts as repeated
SHOWN = 3  # answers of the first prompts, in a table
LIST = re.compile(r"^\s*([-*•]|\d+[.)])\s+\S", re.MULTILINE)
CODE = re.compile(r"```|^(    |\t)\S", re.MULTILINE)
# how answers begin that decline; a statistic of form, which understands nothing
REFUSAL = re.compile(
    r"(i'?m sorry|i am sorry|sorry,|i apologi[sz]e|i can'?t|i cannot|i can not|i'?m (not able|unable)|"
    r"i am (not able|unable)|i won'?t|as an ai|as a language model|unfortunately, i)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """One answer to the prompt of a row."""

    row: Row
    prompt_ids: list[int]
    completion: Completion
    text: str


def measure_generated(subject: Subject, context: MeasureContext) -> MeasureResult:
    """Statistics of the answers to the first held-out prompts, and the KL divergence from the reference where
    there is one and the answers are drawn from the model as it is.
    """
    answers = write_answers(subject, context)
    prompts = [prompt_digest(answer.row) for answer in answers]
    values = _statistics(answers)
    scores = {
        f"{SAMPLED}{name}": _scores(name, numbers, prompts) for name, numbers in values.items() if numbers
    }
    lines = []
    settings = context.spec.eval.generate
    is_drawn = settings.temperature == 1 and settings.top_p == 1
    if subject.reference_name is None:
        lines.append("no KL: there is no reference; name one with eval.reference=MODEL")
    elif not is_drawn:
        lines.append("no KL: the answers are not drawn from the model itself (temperature 1, top_p 1)")
    else:
        scores |= kl_scores(subject, answers, prompts, context)
        cut = sum(not answer.completion.finished for answer in answers)
        if cut:
            lines.append(
                f"{cut} of {len(answers)} answers are cut at eval.max_new_tokens="
                f"{context.spec.eval.max_new_tokens}: their KL is that of what was written"
            )
    text = "".join(json.dumps(_as_line(answer), ensure_ascii=False) + "\n" for answer in answers)
    return MeasureResult(scores, {"The first answers": _first(answers)}, {ANSWERS_FILE: text}, lines)


def write_answers(subject: Subject, context: MeasureContext) -> list[Answer]:
    """`eval.generate.n` answers to each of the first held-out prompts, prompt by prompt. The same prompts and
    the same random numbers for every model.
    """
    from ..data.templates import encode_prompts, stop_token_ids
    from ..engine.generation import Sampling, generate
    from ..runtime.progress import progress_tracker

    settings = context.spec.eval
    drawn = settings.generate
    rows = context.rows.prompts(settings.generations)
    prompts = encode_prompts(subject.tokenizer, rows)
    sampling = Sampling(settings.max_new_tokens, drawn.temperature, drawn.top_p, drawn.n, drawn.seed)
    completions = generate(
        subject.model,
        prompts,
        sampling,
        stop_ids=stop_token_ids(subject.tokenizer),
        max_tokens=settings.batch * (max(map(len, prompts), default=0) + settings.max_new_tokens),
        max_rows=settings.batch,
        device=subject.device,
        dtype=subject.dtype,
        progress=progress_tracker(f"answers of {subject.name}", context.console),
    )
    return [
        Answer(row, prompt, each, _text(subject, each))
        for row, prompt, several in zip(rows, prompts, completions, strict=True)
        for each in several
    ]


def _text(subject: Subject, completion: Completion) -> str:
    return str(subject.tokenizer.decode(completion.token_ids, skip_special_tokens=True)).strip()


def _statistics(answers: Sequence[Answer]) -> dict[str, list[float | None]]:
    """One value per answer; None where the data does not say what is right."""
    texts = [answer.text for answer in answers]
    right = [is_correct(answer.text, answer.row.get("answer")) for answer in answers]
    return {
        "correct": [None if known is None else float(known) for known in right],
        "words": [float(count_words(text)) for text in texts],
        "tokens": [float(len(answer.completion.token_ids)) for answer in answers],
        "one_sentence": [float(count_sentences(text) == 1) for text in texts],
        "finished": [float(answer.completion.finished) for answer in answers],
        "empty": [float(not text) for text in texts],
        "repeated": [repeated_share(text) for text in texts],
        "lists": [float(bool(LIST.search(text))) for text in texts],
        "code": [float(bool(CODE.search(text))) for text in texts],
        "refusals": [float(bool(REFUSAL.match(text))) for text in texts],
    }


def _scores(name: str, numbers: Sequence[float | None], prompts: Sequence[str]) -> Scores:
    known = [(value, prompt) for value, prompt in zip(numbers, prompts, strict=True) if value is not None]
    values, asked = [value for value, _ in known], [prompt for _, prompt in known]
    return Scores(values, share=metric(f"{SAMPLED}{name}").is_share, prompts=asked)


def repeated_share(text: str) -> float:
    """The share of an answer's runs of four words that came before in it."""
    words = text.lower().split()
    runs = Counter(tuple(words[start : start + RUN_LENGTH]) for start in range(len(words) - RUN_LENGTH + 1))
    total = sum(runs.values())
    return (total - len(runs)) / total if total else 0.0


def kl_scores(
    subject: Subject, answers: Sequence[Answer], prompts: Sequence[str], context: MeasureContext
) -> dict[str, Scores]:
    """The KL divergence of the subject from its reference, in nats per answer and per token: the mean of
    log pi(y|x) - log pi_ref(y|x) over answers y that the subject drew, which is unbiased.

    Both are computed in the same layout, so that equal models are at 0.
    """
    own = _sums(subject, answers, context)
    with subject.reference(context.console) as reference:
        other = own if reference is subject else _sums(reference, answers, context)
    gains = [mine - theirs for mine, theirs in zip(own, other, strict=True)]
    tokens = [float(len(answer.completion.token_ids)) for answer in answers]
    return {
        f"{SAMPLED}kl": Scores(gains, prompts=prompts),
        f"{SAMPLED}kl_per_token": Scores(gains, tokens, prompts=prompts),
    }


def _sums(subject: Subject, answers: Sequence[Answer], context: MeasureContext) -> list[float]:
    """log p of each answer, its stop token included, in nats."""
    from ..engine.logprobs import score_sequences
    from ..engine.packing import ScoredSequence
    from ..runtime.progress import progress_tracker

    sequences = [ScoredSequence(answer.prompt_ids, answer.completion.token_ids) for answer in answers]
    progress = progress_tracker(f"KL of {subject.name}", context.console)
    logps = score_sequences(subject.model, sequences, subject.engine, subject.dtype, progress)
    return [float(tokens.double().sum()) for tokens in logps]


def _as_line(answer: Answer) -> dict[str, Any]:
    completion = answer.completion
    return {
        "prompt": prompt_messages(answer.row),
        "answer": answer.text,
        "tokens": len(completion.token_ids),
        "logp": round(sum(completion.logps), 6),
        "finished": completion.finished,
    }


def _first(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The first answer to each of the first prompts: not selected."""
    firsts = {prompt_digest(answer.row): answer for answer in reversed(answers)}
    shown = [answer for answer in answers if firsts[prompt_digest(answer.row)] is answer][:SHOWN]
    return [
        {"prompt": str(prompt_messages(answer.row)[-1]["content"]), "answer": answer.text} for answer in shown
    ]
