"""Texts to token ids: each part of a text is encoded once.

A special token splits a text: the tokenizer encodes what is before and after it independently. So a text is
split before every special token, equal parts (such as a prompt that is repeated with each answer) are encoded
once, and the ids of the parts are concatenated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompts = list[tuple[str, list[str]]]  # each with its answers
EncodeAnswers = Callable[[Prompts], list[tuple[list[int], list[list[int]]]]]


def encode_rendered(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The ids of a template's texts. Adds no special tokens: the template writes them, BOS included."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)[
        "input_ids"
    ]
    return ids


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The ids of texts without a template, with the special tokens that the tokenizer adds (BOS)."""
    backend = _fast_backend(tokenizer)
    if backend is None:
        return tokenizer(texts)["input_ids"]
    return [encoding.ids for encoding in backend.encode_batch_fast(texts)]


def answer_encoder(tokenizer: PreTrainedTokenizerBase) -> EncodeAnswers:
    """A function of [(prompt, its answers)], which are texts of a template, to the ids of each prompt and
    those after it of each answer. Where a token would span prompt and answer, the answer is encoded alone.
    """
    backend, may_split = _fast_backend(tokenizer), _splitting_tokens(tokenizer)
    if backend is None or not any(may_split.values()):
        return lambda prompts: _encode_whole(tokenizer, prompts)
    pattern = re.compile(f"({_any_of(may_split).pattern})")

    def parts_of(text: str) -> list[str]:
        return _join_parts(pattern.split(text), may_split)

    def encode(prompts: Prompts) -> list[tuple[list[int], list[list[int]]]]:
        # No token before a prompt's last part depends on what follows the prompt.
        parts = [parts_of(prompt) for prompt, _ in prompts]
        tails = [
            [parts_of(before[-1] + answer) for answer in answers]
            for before, (_, answers) in zip(parts, prompts, strict=True)
        ]
        distinct = list(dict.fromkeys(chain(chain.from_iterable(parts), *chain.from_iterable(tails))))
        encodings = backend.encode_batch_fast(distinct, add_special_tokens=False)
        ids_by_part = {part: encoding.ids for part, encoding in zip(distinct, encodings, strict=True)}

        def ids_of(parts: list[str]) -> list[int]:
            return list(chain.from_iterable(map(ids_by_part.__getitem__, parts)))

        return [
            (
                ids_of(before),
                [
                    _ids_after(tokenizer, ids_by_part[before[-1]], ids_of(tail), answer)
                    for tail, answer in zip(tails_here, answers, strict=True)
                ],
            )
            for before, tails_here, (_, answers) in zip(parts, tails, prompts, strict=True)
        ]

    return encode


def _encode_whole(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> list[tuple[list[int], list[list[int]]]]:
    """What the function of `answer_encoder` returns, of every text by itself."""
    texts = [text for prompt, answers in prompts for text in (prompt, *(prompt + each for each in answers))]
    ids = iter(encode_rendered(tokenizer, texts))
    encoded = []
    for _, answers in prompts:
        before = next(ids)
        encoded.append((before, [_ids_after(tokenizer, before, next(ids), answer) for answer in answers]))
    return encoded


def _ids_after(
    tokenizer: PreTrainedTokenizerBase, before: list[int], whole: list[int], answer: str
) -> list[int]:
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return encode_rendered(tokenizer, [answer])[0]


def special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds every token that is matched in a text as it stands: special ones, and those added to it."""
    if getattr(tokenizer, "split_special_tokens", False):
        return _any_of([])
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return _any_of({*tokenizer.all_special_tokens, *added} - {""})


def special_text_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds the special tokens that a text is not expected to hold; those added to be written are no such."""
    if getattr(tokenizer, "split_special_tokens", False):
        return _any_of([])
    return _any_of({*tokenizer.all_special_tokens} - {""})


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these texts, the longest first; of none, nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _fast_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The `tokenizers.Tokenizer` of a fast tokenizer, set to neither pad nor truncate; else None."""
    encode_rendered(tokenizer, [""])  # a call without padding and truncation resets both
    return getattr(tokenizer, "backend_tokenizer", None)


def _splitting_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """The tokens that are matched before a text is normalized, and whether it may be split before each.

    It may not be split where the token strips, or depends on, what is before it.
    """
    if getattr(tokenizer, "split_special_tokens", False):
        return {}
    return {
        token.content: not (token.lstrip or token.single_word)
        for token in tokenizer.added_tokens_decoder.values()
        if token.content and not token.normalized
    }


def _join_parts(pieces: list[str], may_split: dict[str, bool]) -> list[str]:
    """[text, token, text, token, ...] as parts; each but the first begins with a token to split before."""
    parts = [pieces[0]]
    for token, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if may_split[token]:
            parts.append(token + text)
        else:
            parts[-1] += token + text
    return parts
