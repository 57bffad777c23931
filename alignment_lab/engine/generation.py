"""Greedy answers to prompts: the same prompts and weights give the same text.

Knows chat messages and `eval` settings. Refuses to judge what it generates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..config import Eval
from ..data.templates import encode_prompts, stop_token_ids
from ..distributed import collectives, ranks
from ..runtime.progress import Progress
from .logprobs import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import Row


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: Eval,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> list[str]:
    """One greedy answer to the prompt of each row, without special tokens, in the rows' order.

    `settings.batch` prompts of similar length are generated at once. Of several processes each generates its
    share and gets every answer: they must call this together.
    """
    ids = encode_prompts(tokenizer, rows)
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    batches = [order[start : start + settings.batch] for start in range(0, len(order), settings.batch)]
    local: dict[int, str] = {}  # prompt -> answer
    stop_ids = stop_token_ids(tokenizer)
    with evaluation_mode(model, dtype):
        for indices, _ in progress(ranks.split_between_processes(batches)):
            tokens, mask = _left_pad([ids[index] for index in indices], device)
            outputs = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                eos_token_id=stop_ids,
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
            )
            texts = tokenizer.batch_decode(outputs[:, tokens.shape[1] :], skip_special_tokens=True)
            local |= {index: text.strip() for index, text in zip(indices, texts, strict=True)}
    answers: dict[int, str] = {}
    for part in collectives.all_gather(local):
        answers |= part
    return [answers[index] for index in range(len(ids))]


def _left_pad(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, [N, T] each, with the prompts aligned at their ends."""
    width = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return tokens.to(device), mask.to(device)
