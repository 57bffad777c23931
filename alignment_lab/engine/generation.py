"""Greedy answers to prompts: the same prompts, the same weights, the same text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..config import Eval
from ..data.templates import encode_prompts, stop_token_ids
from ..distributed import collectives, ranks
from .logprobs import Progress, evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import Message


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[Message]],
    how: Eval,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> list[str]:
    """One greedy answer per prompt, without special tokens, in the prompts' order; `how.batch` prompts of like length at once.

    Of several processes each answers its share, and all have every answer: they must ask together.
    """
    ids = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    batches = [order[start : start + how.batch] for start in range(0, len(order), how.batch)]
    answers: dict[int, str] = {}
    stops = stop_token_ids(tokenizer)
    with evaluation_mode(model, dtype):
        for places, _ in progress(ranks.split_between_processes(batches)):
            tokens, mask = _left_padded([ids[place] for place in places], device)
            found = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=how.max_new_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
            )
            for place, text in zip(
                places,
                tokenizer.batch_decode(found[:, tokens.shape[1] :], skip_special_tokens=True),
                strict=True,
            ):
                answers[place] = text.strip()
    everyone = {place: text for part in collectives.all_gather(answers) for place, text in part.items()}
    return [everyone[place] for place in range(len(ids))]


def _left_padded(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, [N, T] each, with the prompts' ends aligned."""
    width = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, width - len(row) :] = torch.tensor(row)
        mask[place, width - len(row) :] = 1
    return tokens.to(device), mask.to(device)
