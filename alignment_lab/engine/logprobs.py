"""The log-probability engine: a causal model and token ids in, log p(token | all before it) out.

Every method and every evaluation asks here. Sequences are packed into trees (see attention.py) where the model allows it exactly, and
right-padded where not; the head runs only where a scored token is predicted. Knows no objective and no row of data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed import collectives
from .layout import Engine, ForwardBatch
from .packing import ScoredSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_ROWS = 128  # of logits, worked on at a time: their float32 copies stay in the cache
Progress = Callable[[Sequence[Any]], Iterable[Any]]  # shows how far along a loop over these steps is


@dataclass(frozen=True)
class TokenLogprobs:
    """What a model says of N sequences: log p of each of their S scored tokens, sequence by sequence."""

    logps: Tensor  # [S] nats, float32 or better
    offsets: Tensor  # [S] the token's place in the answer; below 0 in the prompt
    lengths: Tensor  # [N] scored tokens of each sequence
    sequence_ids: Tensor  # [N] which of the planned sequences they are
    log_sum_squares: Tensor | None = None  # [S] log sum_v p_v^2, where asked for
    is_argmax: Tensor | None = None  # [S] whether the token was the likeliest one, where asked for

    @property
    def segment_ids(self) -> Tensor:
        """[S] which of the N sequences each scored token belongs to."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """Sum over the scored tokens of each sequence: [S] -> [N]."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths)

    def detach(self) -> TokenLogprobs:
        """The same without its gradient."""
        return replace(self, logps=self.logps.detach())

    def to(self, device: torch.device | str) -> TokenLogprobs:
        """The same on `device`."""
        return replace(
            self,
            **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)},
        )

    @staticmethod
    def cat(parts: Sequence[TokenLogprobs]) -> TokenLogprobs:
        """Several as one."""
        found: dict[str, Any] = {}
        for field in fields(TokenLogprobs):
            values = [getattr(part, field.name) for part in parts]
            found[field.name] = None if values[0] is None else torch.cat(values)
        return TokenLogprobs(**found)


def token_logprobs(
    model: PreTrainedModel, batch: ForwardBatch, *, log_sum_squares: bool = False, is_argmax: bool = False
) -> TokenLogprobs:
    """log p of every scored token, and what else was asked for. Only `logps` has a gradient."""
    if batch.layout is not None:
        logits = model(**batch.inputs(), logits_to_keep=batch.predict_at).logits.squeeze(0)  # [S, V]
    else:
        width = batch.input_ids.shape[1]
        rows, columns = batch.predict_at // width, batch.predict_at % width
        first = int(columns.min())  # before it, no row has a scored token
        kept = torch.arange(first, width, device=columns.device)
        logits = model(**batch.inputs(), logits_to_keep=kept).logits[rows, columns - first]  # [S, V]
    logps, squares, top = _LogSoftmaxAt.apply(logits, batch.targets, log_sum_squares, is_argmax)
    return TokenLogprobs(logps, batch.offsets, batch.lengths, batch.sequence_ids, squares, top)


def sequence_scores(model: Any, batch: ForwardBatch) -> Tensor:
    """What a reward model's head says at each sequence's end: [N].

    The whole model is called, as wrappers for several processes want it; its own choice of a token does not know of packs, so that the
    head's output is taken where it arises.
    """
    heads: list[Tensor] = []
    plain = next(
        module for module in model.modules() if hasattr(module, "score") and hasattr(module, "config")
    )
    taken = plain.score.register_forward_hook(lambda _module, _given, said: heads.append(said))
    try:
        model(**batch.inputs())
    finally:
        taken.remove()
    return heads[-1].flatten()[batch.last_positions]


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax(logits)[targets], a few rows at a time; going back, the logits' memory becomes their gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, log_sum_squares: bool, is_argmax: bool
    ) -> tuple[Tensor | None, ...]:
        exact = torch.promote_types(logits.dtype, torch.float32)
        logps, normalizers = (torch.empty(len(targets), dtype=exact, device=logits.device) for _ in range(2))
        squares = torch.empty_like(logps) if log_sum_squares else None
        top = torch.empty(len(targets), dtype=torch.bool, device=logits.device) if is_argmax else None
        for start in range(0, len(targets), LOGIT_ROWS):
            here = slice(start, start + LOGIT_ROWS)
            rows = logits[here].to(exact)
            normalizers[here] = rows.logsumexp(-1)
            logps[here] = rows.gather(-1, targets[here, None])[:, 0] - normalizers[here]
            if squares is not None:
                squares[here] = (2 * rows).logsumexp(-1) - 2 * normalizers[here]
            if top is not None:
                top[here] = rows.argmax(-1) == targets[here]
        ctx.save_for_backward(logits, targets, normalizers)
        ctx.spent = False
        ctx.mark_non_differentiable(*(extra for extra in (squares, top) if extra is not None))
        return logps, squares, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        logits, targets, normalizers = ctx.saved_tensors
        assert not ctx.spent, "the logits are gone: a graph through log-probabilities goes back once"
        ctx.spent = True
        for start in range(0, len(targets), LOGIT_ROWS):
            here = slice(start, start + LOGIT_ROWS)
            rows = (
                (logits[here].to(normalizers.dtype) - normalizers[here, None])
                .exp_()
                .mul_(-gradient[here, None])
            )
            rows.scatter_add_(1, targets[here, None], gradient[here, None])
            logits[here] = rows
        return logits.detach(), None, None, None


@contextmanager
def evaluation_mode(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """No gradients, evaluation mode, computing in `dtype`; the model's mode is given back."""
    training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16),
        ):
            yield
    finally:
        model.train(training)


def score_sequences(
    model: PreTrainedModel,
    sequences: Sequence[ScoredSequence],
    engine: Engine,
    dtype: torch.dtype,
    progress: Progress,
) -> list[Tensor]:
    """Log-probabilities of the scored tokens of each sequence, in the sequences' order, on the CPU: [tokens] nats each.

    Of several processes each scores its share and has all of them in the end: they must ask together.
    """
    with evaluation_mode(model, dtype):
        return score_in_mode(model, sequences, engine, progress)


def score_in_mode(
    model: PreTrainedModel, sequences: Sequence[ScoredSequence], engine: Engine, progress: Progress = iter
) -> list[Tensor]:
    """`score_sequences` within `evaluation_mode`."""
    found: dict[int, Tensor] = {}
    for batch in progress(engine.local_batches(sequences)):
        tokens = (
            token_logprobs(model, batch.to(engine.device or model.device))
            .logps.cpu()
            .split(batch.lengths.tolist())
        )
        found |= zip(batch.sequence_ids.tolist(), tokens, strict=True)
    everyone = {member: values for part in collectives.all_gather(found) for member, values in part.items()}
    return [everyone[member] for member in range(len(sequences))]
