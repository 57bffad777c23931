"""Conversations to text and ids, the tokenizer's own in every case, with each part of a text tokenized once.

A special token cuts a text: the tokenizer treats what stands before and behind it by itself. So a text is cut in front of every special
token, equal parts (the prompt in all that repeats it) are tokenized once, and the ids of the parts follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from typing import Any

from .formats import DataError

Message = dict[str, str]
Encode = Callable[[list[str]], list[list[int]]]


def encode_prompts(tokenizer: Any, prompts: list[list[Message]]) -> list[list[int]]:
    """The ids that the model sees before it answers."""
    return encode_rendered(tokenizer, rendered(tokenizer, prompts, generation_prompt=True))


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The tokens that can end the assistant's turn under this template: its last special token, and the tokenizer's own end."""
    probe = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    (ids,) = encode_rendered(tokenizer, rendered(tokenizer, [probe]))
    (prompt,) = encode_prompts(tokenizer, [probe[:1]])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    last = [token for token in ids[len(prompt) :] if token in special][-1:]
    if not last:
        raise DataError(
            "model.chat_template: it ends the assistant's turn with no special token, so the model would never learn to stop;"
            " let it close the turn with {{ eos_token }}."
        )
    return list(dict.fromkeys([*last, tokenizer.eos_token_id]))


def rendered(
    tokenizer: Any, conversations: list[list[Message]], generation_prompt: bool = False
) -> list[str]:
    """The template's text of each conversation."""
    return (
        tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=generation_prompt)
        if conversations
        else []
    )


def encode_rendered(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of rendered texts; a template writes the special tokens itself: adding them again would double the first."""
    return (
        tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
    )


def encode_documents(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of texts that no template renders, with what the tokenizer puts around a text by itself, such as its first token."""
    core = _core(tokenizer)
    return [found.ids for found in core.encode_batch_fast(texts)] if core else tokenizer(texts)["input_ids"]


def encoder(tokenizer: Any) -> Encode:
    """A function that gives what `encode_rendered` gives, sooner where texts share their beginnings."""
    core, tokens = _core(tokenizer), _cutting(tokenizer)
    if core is None or not any(tokens.values()):
        return lambda texts: encode_rendered(tokenizer, texts)
    parted = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")

    def encode(texts: list[str]) -> list[list[int]]:
        parts = [_parts(parted.split(text), tokens) for text in texts]
        distinct = list(dict.fromkeys(chain.from_iterable(parts)))
        ids = {
            part: found.ids
            for part, found in zip(
                distinct, core.encode_batch_fast(distinct, add_special_tokens=False), strict=True
            )
        }
        return [list(chain.from_iterable(map(ids.__getitem__, text))) for text in parts]

    return encode


def _core(tokenizer: Any) -> Any:
    """What does the work inside of a tokenizer, set to neither pad nor truncate; None in one that is written in Python."""
    encode_rendered(tokenizer, [""])
    return getattr(tokenizer, "backend_tokenizer", None)


def _cutting(tokenizer: Any) -> dict[str, bool]:
    """The tokens that are found in a text before it is normalized, and whether the text may be cut in front of each.

    It may not where the token takes, or looks at, what stands before it.
    """
    if getattr(tokenizer, "split_special_tokens", False):
        return {}
    return {
        token.content: not (token.lstrip or token.single_word)
        for token in tokenizer.added_tokens_decoder.values()
        if token.content and not token.normalized
    }


def _parts(pieces: list[str], cutting: dict[str, bool]) -> list[str]:
    """[text, token, text, token, text ...] -> parts that begin with a token to cut at, but for the first."""
    parts = [pieces[0]]
    for token, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if cutting[token]:
            parts.append(token + text)
        else:
            parts[-1] += token + text
    return parts
