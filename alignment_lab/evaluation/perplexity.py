"""How likely held-out texts are: per token, and per byte, which models of other tokenizers share.

Of data that is no plain text it is the data's own answers, given their prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import Format
from ..data import Row
from .intervals import ReportedMetric, Scores
from .prompts import content_digest
from .results import MeasureResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..engine.packing import ScoredSequence
    from .measures import MeasureContext
    from .subject import Subject

PER_TOKEN, PER_BYTE = "text/nll_per_token", "text/bits_per_byte"


@dataclass(frozen=True)
class Text:
    """What is scored: `ids` after `prompt`, and how many bytes of UTF-8 they are."""

    digest: str
    prompt: list[int]
    ids: list[int]
    size: int


def measure_perplexity(subject: Subject, context: MeasureContext) -> MeasureResult:
    """Nats per token and bits per byte over held-out texts, each text one draw; and the perplexity."""
    from ..engine.logprobs import score_sequences
    from ..runtime.progress import progress_tracker

    settings, spec = context.spec.eval, context.rows.spec
    window = settings.perplexity.window or spec.data.max_length
    stride = settings.perplexity.stride or max(1, window // 2)
    is_text = context.rows.format is Format.text
    texts = _texts(subject, context) if is_text else _answers(subject, context)
    pieces = [windows(text, window, stride) for text in texts]
    progress = progress_tracker(f"texts of {subject.name}", context.console)
    flat = [piece for of_text in pieces for piece in of_text]
    logps = iter(score_sequences(subject.model, flat, subject.engine, subject.dtype, progress))
    nats = [-sum(float(next(logps).double().sum()) for _ in of_text) for of_text in pieces]
    prompts = [text.digest for text in texts]
    per_token = Scores(nats, [float(len(text.ids)) for text in texts], prompts=prompts)
    bits = [value / math.log(2) for value in nats]
    per_byte = Scores(bits, [float(text.size) for text in texts], prompts=prompts)
    what = "texts, every token" if is_text else "the data's answers, given their prompts"
    table = {"of": what, "texts": len(texts), "tokens": sum(len(text.ids) for text in texts)}
    perplexity = _exponential(per_token.estimate())
    return MeasureResult(
        {PER_TOKEN: per_token, PER_BYTE: per_byte},
        {"Perplexity": [{**table, "perplexity": perplexity}]},
    )


def _exponential(nats: ReportedMetric) -> dict[str, Any]:
    bounds = [math.exp(bound) for bound in nats["ci95"]] if nats["ci95"] else None
    return {**nats, "value": math.exp(nats["value"]), "ci95": bounds}


def _texts(subject: Subject, context: MeasureContext) -> list[Text]:
    """The first held-out texts. The first token of each is predicted after the token that begins a text, or,
    where the tokenizer has none, after the one that ends one.
    """
    rows = context.rows.heldout(Format.text)[: context.spec.eval.rows]
    tokenizer = subject.tokenizer
    begins = [_first_token(tokenizer)]
    texts = []
    for row in rows:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        if ids:
            texts.append(Text(content_digest(row["text"]), begins, ids, len(row["text"].encode())))
    return texts


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert token is not None
    return int(token)


def _answers(subject: Subject, context: MeasureContext) -> list[Text]:
    """The data's answers to the first held-out prompts: the chosen ones, the desirable ones, or the last of a
    conversation.
    """
    rows = context.rows.tokenized(subject, context.rows.format, context.spec.eval.rows)
    return [text for row in rows if (text := _answer(row, subject.tokenizer)) is not None]


def _answer(row: Row, tokenizer: PreTrainedTokenizerBase) -> Text | None:
    from .prompts import prompt_digest

    if "input_ids" in row:
        places = [place for place, label in enumerate(row["labels"]) if place and label >= 0]
        first = next((place for place in places if places[-1] - place + 1 == len(places)), None)
        if not places or first is None:
            return None  # several answers: what stands between them is no answer
        prompt, ids = row["input_ids"][:first], row["input_ids"][first : places[-1] + 1]
    elif row.get("label", True):
        prompt, ids = row["prompt_ids"], row["chosen_ids" if "chosen_ids" in row else "completion_ids"]
    else:
        return None
    size = len(tokenizer.decode(ids, skip_special_tokens=True).encode())
    return Text(prompt_digest(row), list(prompt), list(ids), max(1, size))


def windows(text: Text, window: int, stride: int) -> list[ScoredSequence]:
    """The text in pieces of at most `window` tokens with what precedes them: every token is scored once, and
    one after the first window has at least `window` - `stride` tokens before it.
    """
    from ..engine.packing import ScoredSequence

    ids = [*text.prompt, *text.ids]
    first = len(text.prompt)
    end = min(len(ids), max(window, first + 1))
    pieces = [ScoredSequence(ids[:first], ids[first:end])]
    while end < len(ids):
        following = min(len(ids), end + stride)
        start = max(0, following - window)
        pieces.append(ScoredSequence(ids[start:end], ids[end:following]))
        end = following
    return pieces
