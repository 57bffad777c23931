"""Chooses how a model decodes: prompts shared, else transformers' cache, else no cache at all.

A way is taken where it gives, for a few tokens after the shortest and the longest prompt, what the model
gives for each whole sequence alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...distributed import collectives, ranks
from ...models.packed_attention import SHARED_PREFIX, changing_positions, unsupported_reason
from ...runtime.library_internals import attention_implementation
from ..exactness import REFUSALS, difference_between, first_words, raise_failure
from ..logprobs import without_unknown
from .cached import CachedDecoder
from .recomputed import RecomputingDecoder
from .shared import SharedPromptDecoder

PROBE_TOKENS = 32  # the last ones of a prompt, after which ways are compared
PROBED = 2  # tokens that are fed then


class Decoder(Protocol):
    """Continues prompts by a token of each row at a time. Under sharding every call is a collective one."""

    def start(self, prompt_of_row: Sequence[int]) -> Tensor:
        """Compute the prompts; the logits [B, V] that predict the first token of each row."""

    def step(self, tokens: Tensor) -> Tensor:
        """The logits [B, V] that predict what follows `tokens` [B]."""

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""


DecoderClass = type[SharedPromptDecoder] | type[CachedDecoder] | type[RecomputingDecoder]
_chosen: WeakKeyDictionary[Any, dict[tuple[Any, ...], DecoderClass]] = WeakKeyDictionary()


def choose_decoder(
    model: Any, prompts: Sequence[list[int]], longest: int, device: torch.device, dtype: torch.dtype
) -> DecoderClass:
    """The fastest way that is exact for sequences of up to `longest` tokens; tells where it is a slower one.

    It is asked once for a model: by all processes together, in evaluation mode.
    """
    config = model.config.get_text_config()
    changes = changing_positions(config, longest)
    windowed = unsupported_reason(config, longest)
    key = (attention_implementation(model), bool(changes), bool(windowed), dtype)
    known = _chosen.setdefault(model, {})
    if key not in known:
        known[key], reason = _first_exact(model, prompts, device, dtype, changes, windowed)
        if reason and ranks.is_main_process():
            print(f"generation: {known[key].name}, because {reason}", file=sys.stderr, flush=True)
    return known[key]


def _first_exact(
    model: Any,
    prompts: Sequence[list[int]],
    device: torch.device,
    dtype: torch.dtype,
    changes: str | None,
    windowed: str | None,
) -> tuple[DecoderClass, str | None]:
    """The first way that is exact, and what is wrong with those that were expected to be."""
    if changes:
        return RecomputingDecoder, changes
    ways: list[DecoderClass] = [CachedDecoder]
    reason = None
    if attention_implementation(model) == SHARED_PREFIX:
        reason = windowed
        ways = ways if windowed else [SharedPromptDecoder, CachedDecoder]
    ends = [min(prompts, key=len)[-PROBE_TOKENS:], max(prompts, key=len)[-PROBE_TOKENS:]]
    is_rounded = any(weight.dtype.itemsize < 4 for weight in model.parameters())
    # compared in float32 where the weights are: how 16 bits round is no matter of the way
    with nullcontext() if is_rounded else torch.autocast(device.type, enabled=False):
        expected = [_plain_logps(model, prompt + ends[1][:PROBED], device) for prompt in ends]
        for way in ways:
            problem = collectives.broadcast(_problem(way, model, ends, expected, device, not is_rounded))
            if problem is None:
                return way, reason
            reason = f"{reason}; {problem}" if reason else problem
    return RecomputingDecoder, reason


def _problem(
    way: DecoderClass,
    model: Any,
    prompts: Sequence[list[int]],
    expected: Sequence[Tensor],
    device: torch.device,
    is_exact: bool,
) -> str | None:
    """Why this way does not give the expected log-probabilities after these two prompts; None where it does.

    A third row, which leaves after a token, must not matter.
    """
    fed = torch.tensor(prompts[1][:PROBED], device=device)
    try:
        decoder: Decoder = way(model, prompts, device)
        outputs = [decoder.start([0, 1, 1])[::2]]
        outputs += [decoder.step(torch.stack([fed[0], fed[-1], fed[0]]))[::2]]
        decoder.keep([0, 2])
        outputs += [decoder.step(token.expand(2)) for token in fed[1:]]
    except REFUSALS as error:
        raise_failure(error)
        return f"its code refuses {way.name} ({first_words(error)})"
    logps = torch.stack(outputs, dim=1).log_softmax(-1)  # [2, tokens, V]
    difference, tolerance = difference_between(list(logps.float().cpu()), expected, is_exact)
    if difference > tolerance:
        return f"by {way.name} log-probabilities differ by {difference:.2g} from those of whole sequences"
    return None


def _plain_logps(model: Any, ids: Sequence[int], device: torch.device) -> Tensor:
    """log p of every token at the last positions of a sequence, where one was fed or will be: [tokens, V]."""
    keywords = {"input_ids": torch.tensor([ids], device=device), "use_cache": False}
    logits = model(**without_unknown(model, keywords, ("use_cache",))).logits
    return logits[0, -1 - PROBED :].log_softmax(-1).float().cpu()
