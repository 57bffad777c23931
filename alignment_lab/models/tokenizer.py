"""The tokenizer of a model, with the experiment's chat template, and its digest.

Knows `model` settings and tokenizer files. Refuses to know what is tokenized.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TEMPLATES, Model
from ..runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS_LISTED = 5  # tokens that an error message lists


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


def embedding_rows(settings: Model, folder: Path) -> int | None:
    """Rows of the embedding of the model in `folder`, by its config; None where that does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    return getattr(config.get_text_config(), "vocab_size", None)


def require_embedded(tokenizer: PreTrainedTokenizerBase, rows: int, used: Iterable[int], path: str) -> bool:
    """Refuse token ids that the embedding has no row for; gives whether another padding token was taken.

    `rows` are those of the embedding, `used` the ids in the data. A tokenizer may have more tokens than the
    embedding, as long as no row of the data holds one. Raises UserError.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest < rows:
        return False
    if beyond := sorted({token for token in used if token >= rows}):
        names = ", ".join(tokenizer.convert_ids_to_tokens(beyond[:MAX_TOKENS_LISTED]))
        more = f" and {len(beyond) - MAX_TOKENS_LISTED} more" if len(beyond) > MAX_TOKENS_LISTED else ""
        raise UserError(
            f"model.path={path}: its tokenizer has ids up to {largest} and its embedding {rows} rows, and "
            f"{names}{more} of the data and its template lie beyond them; resize the model's embedding to "
            "its tokenizer, or use a template and data without these tokens."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id < rows:
        return False
    tokenizer.pad_token = tokenizer.eos_token
    return True


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
