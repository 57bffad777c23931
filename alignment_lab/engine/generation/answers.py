"""The door for rows: a greedy answer as text to the prompt of each.

Knows chat messages and `eval` settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ...config import Eval
from ...data.templates import encode_prompts, stop_token_ids
from ...runtime.progress import Progress
from .decoding import generate
from .sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...data import Row

ROW_TOKENS = 2048  # of a row, on which the budget of a batch of `eval.batch` answers counts


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

    `settings.batch` prompts of similar length are generated at once, fewer where they are long. Of several
    processes each generates its share and gets every answer: they must call this together.
    """
    completions = generate(
        model,
        encode_prompts(tokenizer, rows),
        Sampling(settings.max_new_tokens),
        stop_ids=stop_token_ids(tokenizer),
        max_tokens=settings.batch * ROW_TOKENS,
        max_rows=settings.batch,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    # one by one: of no answers `batch_decode` makes one
    texts = [tokenizer.decode(answer.token_ids, skip_special_tokens=True) for (answer,) in completions]
    return [str(text).strip() for text in texts]
