"""From a `model` setting to weights and tokenizer. Finding them needs no torch; what cannot be had is one sentence.

Weights are held in float32 and computed with in `model.dtype`: an update of 1e-6 is lost on a bfloat16 weight.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TEMPLATES, Model
from ..runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: Model, where: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with the experiment's chat template. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=model.trust_remote_code)
    if model.chat_template:
        tokenizer.chat_template = chat_template(model.chat_template)
    if not tokenizer.chat_template:
        shipped = " or ".join(sorted(TEMPLATES))
        raise UserError(
            f"model={model.name}: its tokenizer has no chat template; set model.chat_template to {shipped}, or a .jinja file."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = (
            tokenizer.eos_token
        )  # never looked at: padding is told by lengths, not by its id
    return tokenizer


def chat_template(said: str) -> str:
    """The template behind `model.chat_template`: the template itself, a shipped name, or a file."""
    return said if "{" in said else TEMPLATES.get(said, Path(said).expanduser()).read_text(encoding="utf-8")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of vocabulary, rules and chat template."""
    rules = (
        tokenizer.backend_tokenizer.to_str()
        if hasattr(tokenizer, "backend_tokenizer")
        else repr(sorted(tokenizer.get_vocab().items()))
    )
    return hashlib.sha256(f"{rules}{tokenizer.chat_template}".encode()).hexdigest()
