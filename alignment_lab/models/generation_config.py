"""The configs of a model that is about to be saved: where generation stops, the padding id, the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.templates import stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def set_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Prepare the configs of a model, in place, before it is saved.

    Training may have switched the cache off. Generation stops at every token that ends a turn in training.
    A reward model does not generate; it needs the padding id to find the last token of each row of a batch.
    """
    model.config.use_cache = True
    if model.can_generate():
        model.generation_config.eos_token_id = stop_token_ids(tokenizer)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    else:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
