"""The configs of a model that is about to be saved: where generation stops, the padding id, the KV cache."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from ..data.templates import stop_token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# what other settings depend on: temperature is refused without do_sample, length_penalty with one beam
DECIDING_SETTINGS = ("do_sample", "num_beams", "max_length", "max_new_tokens", "return_dict_in_generate")


def set_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prepare the configs of a model, in place, before it is saved; gives what is left out, as `key=value`.

    Training may have switched the cache off. A reward model does not generate; it needs the padding id to
    find the last token of each row of a batch.
    """
    model.config.use_cache = True
    if model.can_generate():
        model.generation_config, left_out = _final_generation_config(model, tokenizer)
        return left_out
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return []


def _final_generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[GenerationConfig, list[str]]:
    """The generation config that is saved, and the settings of the base's that are left out, as `key=value`.

    Generation stops at every token that ends a turn in training. What transformers ignores when it generates,
    and refuses to write, is left out: temperature without do_sample, as older models have it.
    """
    from transformers import GenerationConfig

    given: dict[str, Any] = deepcopy(model.generation_config).to_diff_dict()
    given |= {"eos_token_id": stop_token_ids(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config, left_out = GenerationConfig(), []
    for key in sorted(given, key=lambda key: key not in DECIDING_SETTINGS):
        before = getattr(config, key, None)
        setattr(config, key, given[key])
        if not _is_valid(config):
            setattr(config, key, before)
            left_out.append(f"{key}={given[key]}")
    return config, left_out


def _is_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except (ValueError, TypeError):
        return False
    return True
