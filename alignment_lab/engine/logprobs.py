"""Runs forward passes and computes log p(token | all tokens before it) of every scored token.

The LM head runs only where a scored token is predicted, and the log softmax needs no second copy of the
logits. Refuses to know objectives and rows of data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed import collectives
from ..models.fused.head import Request, score_by_head, scoring_head
from ..runtime.progress import Progress
from .layout import Engine, ForwardBatch
from .packing import ScoredSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_ROWS = 128  # rows of logits in one step: their float32 copies stay in the cache
CUDA_LOGIT_ROWS = 1024  # on an accelerator: enough work for one launch


@dataclass(frozen=True)
class TokenLogprobs:
    """log p of each of the S scored tokens of N sequences, sequence by sequence."""

    logps: Tensor  # [S] nats, float32 or better
    offsets: Tensor  # [S] position of the token in the answer; negative in the prompt
    lengths: Tensor  # [N] scored tokens of each sequence
    sequence_ids: Tensor  # [N] index of each sequence among the planned ones
    log_sum_squares: Tensor | None = None  # [S] log sum_v p_v^2, where requested
    is_argmax: Tensor | None = None  # [S] whether the token has the highest probability, where requested

    @property
    def segment_ids(self) -> Tensor:
        """[S] which of the N sequences each scored token belongs to."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """Sum over the scored tokens of each sequence: [S] -> [N]."""
        # unsafe: the check of the lengths would wait for the device, twice
        return torch.segment_reduce(values, "sum", lengths=self.lengths, unsafe=True)

    def detach(self) -> TokenLogprobs:
        """A copy without gradient."""
        return replace(self, logps=self.logps.detach())

    def to(self, device: torch.device | str) -> TokenLogprobs:
        """A copy on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def in_order(self) -> TokenLogprobs:
        """A copy with the sequences in the order in which they were planned, however they were packed."""
        order = self.sequence_ids.argsort()
        tokens = self.sequence_ids.repeat_interleave(self.lengths).argsort(stable=True)
        of_sequences = {name: getattr(self, name)[order] for name in ("lengths", "sequence_ids")}
        of_tokens = {
            field.name: value[tokens]
            for field in fields(self)
            if field.name not in of_sequences and (value := getattr(self, field.name)) is not None
        }
        return replace(self, **of_sequences, **of_tokens)

    @staticmethod
    def cat(parts: Sequence[TokenLogprobs]) -> TokenLogprobs:
        """Concatenate several."""
        columns: dict[str, Any] = {}
        for field in fields(TokenLogprobs):
            values = [getattr(part, field.name) for part in parts]
            columns[field.name] = None if values[0] is None else torch.cat(values)
        return TokenLogprobs(**columns)


def token_logprobs(
    model: PreTrainedModel, batch: ForwardBatch, *, log_sum_squares: bool = False, is_argmax: bool = False
) -> TokenLogprobs:
    """log p of every scored token, and the optional values that are requested.

    Only `logps` has a gradient.
    """
    if batch.layout is not None and (head := scoring_head(model)) is not None:
        request = Request(batch.targets, log_sum_squares, is_argmax)
        logps = score_by_head(head, request, lambda: _forward(model, batch, batch.predict_at))
        extras = (request.squares, request.argmax)
        return TokenLogprobs(logps, batch.offsets, batch.lengths, batch.sequence_ids, *extras)
    if batch.row_calls:
        logits = torch.cat([_predicting_logits(model, row) for row in batch.rows()])
    else:
        logits = _predicting_logits(model, batch)
    logps, squares, argmax = _TargetLogSoftmax.apply(logits, batch.targets, log_sum_squares, is_argmax)
    return TokenLogprobs(logps, batch.offsets, batch.lengths, batch.sequence_ids, squares, argmax)


def _predicting_logits(model: PreTrainedModel, batch: ForwardBatch) -> Tensor:
    """The logits that predict the scored tokens, [S, V].

    A forward that cuts its logits gives those alone; one that ignores `logits_to_keep`, as remote code may,
    gives all. The number of rows tells which.
    """
    width = batch.input_ids.shape[1]
    if batch.layout is not None:
        kept = batch.predict_at
        if len(kept) == width:
            kept = torch.cat([kept, kept[:1]])  # one more, so that cut and whole logits differ in number
        logits = _forward(model, batch, kept).squeeze(0)  # a slice's gradient would be a copy of all logits
        if len(logits) == width:
            return logits[batch.predict_at]
        return logits if kept is batch.predict_at else logits[:-1]
    rows, columns = batch.predict_at // width, batch.predict_at % width
    first = int(columns.min()) if len(columns) else width - 1  # before this column no token is scored
    logits = _forward(model, batch, torch.arange(first, width, device=columns.device))
    return logits[rows, columns if logits.shape[1] == width else columns - first]


def _forward(model: PreTrainedModel, batch: ForwardBatch, logits_to_keep: Tensor) -> Tensor:
    keywords = {**batch.inputs(), "logits_to_keep": logits_to_keep}
    return model(**without_unknown(model, keywords, ("logits_to_keep", "use_cache"))).logits


def without_unknown(model: Any, keywords: dict[str, Any], optional: Sequence[str]) -> dict[str, Any]:
    """The keywords without those `optional` ones that the model's forward does not take."""
    while hasattr(model, "module"):  # wrapped for several processes
        model = model.module
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = signature(base.forward).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters or name not in optional}


def sequence_scores(model: Any, batch: ForwardBatch) -> Tensor:
    """A reward model's score of each sequence: its head's output at the last token, [N].

    The whole model is called, because sharding wrappers require that. Its own choice of the last token
    assumes padded rows, so the head's output is captured by a hook.
    """
    if batch.row_calls:
        return torch.cat([sequence_scores(model, row) for row in batch.rows()])[: len(batch.lengths)]
    outputs: list[Tensor] = []
    base = next(
        module for module in model.modules() if hasattr(module, "score") and hasattr(module, "config")
    )
    hook = base.score.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        model(**batch.inputs())
    finally:
        hook.remove()
    return outputs[-1].flatten()[batch.last_positions]


class _TargetLogSoftmax(torch.autograd.Function):
    """log softmax(logits)[targets], a block of rows at a time.

    Backward overwrites the logits with their gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, log_sum_squares: bool, is_argmax: bool
    ) -> tuple[Tensor | None, ...]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logps, normalizers = (torch.empty(len(targets), dtype=dtype, device=logits.device) for _ in range(2))
        squares = torch.empty_like(logps) if log_sum_squares else None
        argmax = torch.empty(len(targets), dtype=torch.bool, device=logits.device) if is_argmax else None
        for block in _row_blocks(logits):
            rows = logits[block].to(dtype)
            normalizers[block] = rows.logsumexp(-1)
            logps[block] = rows.gather(-1, targets[block, None])[:, 0] - normalizers[block]
            if squares is not None:
                squares[block] = (2 * rows).logsumexp(-1) - 2 * normalizers[block]
            if argmax is not None:
                argmax[block] = rows.argmax(-1) == targets[block]
        ctx.save_for_backward(logits, targets, normalizers)
        ctx.logits_overwritten = False
        ctx.mark_non_differentiable(*(extra for extra in (squares, argmax) if extra is not None))
        return logps, squares, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """d logps / d logits = one_hot(target) - softmax(logits), written into the memory of the logits."""
        logits, targets, normalizers = ctx.saved_tensors
        assert not ctx.logits_overwritten, (
            "the logits are gone: backward through log-probabilities works once"
        )
        ctx.logits_overwritten = True
        for block in _row_blocks(logits):
            rows = logits[block].to(normalizers.dtype) - normalizers[block, None]
            rows = rows.exp_().mul_(-gradient[block, None])
            rows.scatter_add_(1, targets[block, None], gradient[block, None])
            logits[block] = rows
        return logits.detach(), None, None, None


def _row_blocks(logits: Tensor) -> list[slice]:
    size = CUDA_LOGIT_ROWS if logits.is_cuda else LOGIT_ROWS
    return [slice(start, start + size) for start in range(0, len(logits), size)]


@contextmanager
def evaluation_mode(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """No gradients, evaluation mode, autocast to `dtype` if it is bfloat16; the model's mode is restored."""
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
    """Log-probabilities of each sequence's scored tokens, in order, on the CPU: [tokens] nats each.

    Of several processes each computes its share and gets all of them: they must call this together.
    """
    with evaluation_mode(model, dtype):
        return score_without_grad(model, sequences, engine, progress)


def score_without_grad(
    model: PreTrainedModel, sequences: Sequence[ScoredSequence], engine: Engine, progress: Progress = iter
) -> list[Tensor]:
    """`score_sequences` for a caller that is already in `evaluation_mode`."""
    local: dict[int, Tensor] = {}  # sequence -> its tokens' log-probabilities
    for batch in progress(engine.local_batches(sequences)):
        logps = token_logprobs(model, batch.to(engine.device or model.device)).logps.cpu()
        local |= zip(batch.sequence_ids.tolist(), logps.split(batch.lengths.tolist()), strict=True)
    gathered: dict[int, Tensor] = {}
    for part in collectives.all_gather(local):
        gathered |= part
    return [gathered[index] for index in range(len(sequences))]
