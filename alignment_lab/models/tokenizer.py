"""The tokenizer of a model, with the experiment's chat template, and its digest.

Knows `model` settings and tokenizer files. Refuses to know what is tokenized.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TEMPLATES, Model
from ..runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(settings: Model, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder` with the experiment's chat template.

    Raises UserError where there is no template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template:
        tokenizer.chat_template = resolve_chat_template(settings.chat_template)
    if not tokenizer.chat_template:
        shipped = " or ".join(sorted(TEMPLATES))
        raise UserError(
            f"model={settings.name}: its tokenizer has no chat template; set model.chat_template "
            f"to {shipped}, or a .jinja file."
        )
    if tokenizer.pad_token is None:
        # any id will do: padding is masked by lengths, not recognized by its id
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def resolve_chat_template(value: str) -> str:
    """The template behind `model.chat_template`: a template itself, the name of a shipped one, or a file."""
    if "{" in value:
        return value
    return TEMPLATES.get(value, Path(value).expanduser()).read_text(encoding="utf-8")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of vocabulary, rules, special tokens and chat template."""
    rules = (
        tokenizer.backend_tokenizer.to_str()
        if hasattr(tokenizer, "backend_tokenizer")
        else repr(sorted(tokenizer.get_vocab().items()))
    )
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return hashlib.sha256(f"{rules}{special}{tokenizer.chat_template}".encode()).hexdigest()


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of the chat template alone."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
