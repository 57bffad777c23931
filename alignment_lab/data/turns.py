"""A prompt and the answers to it as token ids: the prompt as at generation, the answer up to its stop token.

The answer is what follows the prompt in the text of the whole conversation. Where a template cannot write it
so, or leaves out what the row says, the answer is a BadRow.
"""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..config import Truncation
from .encoding import EncodeAnswers, answer_encoder
from .prompts import answer_indices, prompt_of_answer
from .reasons import BadRow, Reason
from .rows import IGNORE_INDEX, Message, Row
from .templates import Chat, TurnEnd, answer_mender, join_open_turn, render, shared_beginning, turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 1000  # prompts per call of the template and of the tokenizer
REPEATED_STOP = "answers end with the stop token's text: it is trained once"
REMEDY = "choose a template that does, or leave it out of the row"


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt with the answers to it, and the row that they are from."""

    row: Row
    prompt: list[Message]
    answers: list[list[Message]]
    is_open: bool = False  # the answers go on in the last message of the prompt
    is_last: bool = True  # nothing of the row follows: what the template wrote of it is compared with it


def encode_turns(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], counts: Counter[str]
) -> Iterator[tuple[list[int], list[list[int] | BadRow]]]:
    """(prompt ids, ids of each answer or why there are none) of every turn, in order.

    Counted: answers that ended with the text of a stop token, and what `_seen` says of prompts. Raises
    DataError for a template that no answer can be trained with.
    """
    end, encode = turn_end(tokenizer), answer_encoder(tokenizer)
    mend, bos = answer_mender(tokenizer, end), added_bos(tokenizer)
    for start in range(0, len(turns), BATCH_SIZE):
        batch = []
        for turn in turns[start : start + BATCH_SIZE]:
            prompt, answers = mend(turn.prompt), list(map(mend, turn.answers))
            repeated = sum(new is not old for new, old in zip(answers, turn.answers, strict=True))
            if repeated:
                counts[REPEATED_STOP] += repeated
            if repeated or prompt is not turn.prompt:
                turn = replace(turn, prompt=prompt, answers=answers)
            batch.append(turn)
        with _paused_collection():
            encoded = _encode_batch(tokenizer, encode, end, batch)
        for turn, (prompt_ids, _) in zip(batch, encoded, strict=True):
            if turn.is_last and prompt_ids:
                counts.update(_seen(tokenizer, turn.row, prompt_ids, bos))
        yield from encoded


def added_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the tokenizer begins a text with by itself, as it did where the model was pretrained."""
    bos: int | None = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def _seen(tokenizer: PreTrainedTokenizerBase, row: Row, prompt: list[int], bos: int | None) -> Iterator[str]:
    """What is odd about a prompt: no BOS, or two, where the tokenizer adds one; arguments without effect."""
    if bos is not None and prompt[0] != bos:
        yield (
            f"prompts begin without {tokenizer.bos_token}, which the tokenizer begins every other text with: "
            "let the chat template write {{ bos_token }}"
        )
    if bos is not None and prompt[:2] == [bos, bos]:
        yield f"prompts begin with {tokenizer.bos_token} twice: let the chat template write it once"
    for name in row.get("chat_template_kwargs") or ():
        if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
            yield f"prompts are given {name} by `chat_template_kwargs` and the chat template does not read it"


def _encode_batch(
    tokenizer: PreTrainedTokenizerBase, encode: EncodeAnswers, end: TurnEnd, turns: list[Turn]
) -> list[tuple[list[int], list[list[int] | BadRow]]]:
    prompts = render(
        tokenizer, [Chat.of(turn.row, turn.prompt, is_prompt=True, is_open=turn.is_open) for turn in turns]
    )
    wholes = iter(
        render(
            tokenizer,
            [Chat.of(turn.row, _join(turn, answer)) for turn in turns for answer in turn.answers],
        )
    )
    texts = [
        [_answer_text(turn, answer, prompt, next(wholes), end) for answer in turn.answers]
        for turn, prompt in zip(turns, prompts, strict=True)
    ]
    written = [
        (prompt, [text for text in answers if isinstance(text, str)]) if isinstance(prompt, str) else ("", [])
        for prompt, answers in zip(prompts, texts, strict=True)
    ]
    encoded = []
    for answers, (prompt_ids, answer_ids) in zip(texts, encode(written), strict=True):
        ids = iter(answer_ids)
        encoded.append((prompt_ids, [text if isinstance(text, BadRow) else next(ids) for text in answers]))
    return encoded


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Without the search for garbage in cycles, which goes through all objects of the process each time that
    so many new ones are made as one batch of messages becomes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _join(turn: Turn, answer: list[Message]) -> list[Message]:
    return join_open_turn(turn.prompt, answer) if turn.is_open else turn.prompt + answer


def _answer_text(
    turn: Turn, answer: list[Message], prompt: str | BadRow, whole: str | BadRow, end: TurnEnd
) -> str | BadRow:
    """The text that the model is to write after the prompt, up to and with the stop token."""
    if isinstance(prompt, BadRow) or isinstance(whole, BadRow):
        return prompt if isinstance(prompt, BadRow) else whole
    if whole.startswith(prompt):
        text: str | BadRow = whole[len(prompt) :]
    else:
        text = _after_opened_thinking(answer, prompt, whole, end)
    if isinstance(text, BadRow):
        return text
    if text.endswith(end.stop + end.after):
        text = text[: len(text) - len(end.after)]
    elif end.stop in text:
        text = text[: text.rindex(end.stop) + len(end.stop)]
    else:
        detail = f"the chat template ends this answer without {end.stop}, at which generation stops"
        return BadRow(Reason.template_refuses, detail)
    return _left_out(turn, answer, prompt, whole, text) or text


def _after_opened_thinking(answer: list[Message], prompt: str, whole: str, end: TurnEnd) -> str | BadRow:
    """The answer after a prompt that begins to think for it, as those of DeepSeek-R1's distilled models do,
    where the whole conversation is written without thoughts.
    """
    before_turn = prompt.removesuffix(end.header)
    if not end.header or before_turn == prompt or not whole.startswith(before_turn):
        return BadRow(
            Reason.template_refuses,
            "the chat template writes the messages before the answer otherwise once the answer follows",
        )
    opening = prompt[len(shared_beginning(prompt, whole)) :]
    mark, message = opening.strip(), answer[0]
    content, thoughts = message["content"], message.get("reasoning_content")
    if thoughts:
        content = f"{mark}\n{thoughts}\n{mark.replace('<', '</', 1)}\n\n{content}"
    if len(answer) > 1 or not mark or not content.startswith(mark):
        return BadRow(
            Reason.template_refuses,
            f"the chat template begins the answer with {opening!r} at generation, and this answer does not",
        )
    content = content.removeprefix(opening if content.startswith(opening) else mark)
    return content + end.before + end.stop + end.after


def _left_out(turn: Turn, answer: list[Message], prompt: str, whole: str, text: str) -> BadRow | None:
    """What the row says and the template does not write, if anything."""
    what = None
    calls = [call["function"]["name"] for message in answer for call in message.get("tool_calls", ())]
    if not all(name in text for name in calls):
        what = "the answer's `tool_calls`"
    elif not all(message.get("reasoning_content", "").strip() in text for message in answer):
        what = "the answer's thoughts (`reasoning_content`, `thinking`)"
    elif turn.is_last:
        tools = turn.row.get("tools") or ()
        if not all(tool.get("function", tool).get("name", "") in prompt for tool in tools):
            what = "the row's `tools`"
        elif missing := next((m for m in turn.prompt if not _is_written(m, whole)), None):
            what = f"the {missing['role']}'s message"
    if what is None:
        return None
    return BadRow(Reason.template_refuses, f"the chat template does not write {what}; {REMEDY}")


def _is_written(message: Message, text: str) -> bool:
    """Whether a message that is no answer stands in the text, as it is or as JSON."""
    content = message["content"].strip()
    if message["role"] == "assistant" or content in text:
        return True
    return json.dumps(content, ensure_ascii=False)[1:-1] in text


# (prompt, tokens of the longest answer to it) -> (head, start): prompt[:head] + prompt[start:] is what stays
Shorten = Callable[[list[int], int], tuple[int, int]]


def prompt_shortener(tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: Truncation) -> Shorten:
    """What `truncation` leaves of a prompt: all of it, or as much of its end as has room in `max_length` with
    the answer, and half of that at least. BOS stays.
    """

    def shorten(prompt: list[int], answer: int) -> tuple[int, int]:
        room = max(max_length - answer, max_length // 2)
        if truncation is Truncation.answer or len(prompt) <= room:
            return 0, 0
        head = int(prompt[0] == tokenizer.bos_token_id)
        return head, len(prompt) - room + head

    return shorten


@dataclass(slots=True)
class LabeledSequence:
    """Ids and labels of consecutive answers, and where each answer starts."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def add(self, prompt: list[int], answer: list[int]) -> None:
        """Go on with a prompt that begins with all ids so far, and its answer."""
        context = prompt[len(self.ids) :]
        self.labels += [IGNORE_INDEX] * len(context) + answer
        self.starts.append(len(prompt))
        self.ids = prompt + answer

    def shortened(self, shorten: Shorten) -> LabeledSequence:
        """The same with less before its last answer. An answer without its beginning is not trained."""
        last = self.starts[-1]
        head, start = shorten(self.ids[:last], len(self.ids) - last)
        if not start:
            return self
        starts = [each for each in self.starts if each >= start]
        return LabeledSequence(
            self.ids[:head] + self.ids[start:],
            self.labels[:head] + [IGNORE_INDEX] * (starts[0] - start) + self.labels[starts[0] :],
            [each - start + head for each in starts],
        )


def join_turns(turns: list[tuple[list[int], list[int]]]) -> list[LabeledSequence]:
    """The fewest sequences in which each answer stands after its own prompt, of consecutive turns."""
    sequences: list[LabeledSequence] = []
    for prompt, answer in turns:
        if not sequences or prompt[: len(sequences[-1].ids)] != sequences[-1].ids:
            sequences.append(LabeledSequence())
        sequences[-1].add(prompt, answer)
    return sequences


def answered_turns(row: Row) -> list[Turn]:
    """Each turn of the assistant that is trained as an answer to all messages before it."""
    answers = answer_indices(row["messages"])
    return [_answered_turn(row, index, is_last=index == answers[-1]) for index in answers]


def _answered_turn(row: Row, index: int, *, is_last: bool) -> Turn:
    prompt, is_open = prompt_of_answer(row["messages"], index)
    message: Message = row["messages"][index]
    if is_open:
        message = {**message, "content": message["content"].removeprefix(prompt[-1]["content"])}
    return Turn(row, prompt, [[message]], is_open, is_last)
