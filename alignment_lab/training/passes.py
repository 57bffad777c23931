"""Forward and backward of a global batch: pass by pass, or all rows at once where a loss couples them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..distributed import ranks
from ..engine.logprobs import TokenLogprobs
from .batch import GlobalBatch, gather_outputs

if TYPE_CHECKING:
    from .loop import Trainer


def separate_passes(trainer: Trainer, batch: GlobalBatch) -> Tensor:
    """The loss of a row depends on no other row: each pass goes forward and backward by itself. Gives the
    loss.

    A NaN in any pass's loss makes the last gradient NaN, on every process, so that none of them takes the
    step.
    """
    losses: list[Tensor] = []
    for one in batch.passes:
        is_last = one is batch.passes[-1]
        with trainer.backend.pass_of_step(is_last=is_last):
            outputs = trainer.objective.forward(trainer.backend.wrapped, one)
            loss = pass_loss(trainer, outputs, batch, is_filler=one.is_filler)
            losses.append(loss.detach())
            trainer.backend.backward(loss * _one_or_nan(losses) if is_last else loss)
        trainer.hooks.heartbeat()
    return torch.stack(losses).sum()


def coupled_passes(trainer: Trainer, batch: GlobalBatch) -> Tensor:
    """A loss of all rows at once over several passes, exactly: each token's gradient first, then the passes
    again with it.

    Gradient caching, Gao et al. 2021 (arXiv:2101.06983): one more forward pass, no more memory.
    """
    with torch.no_grad():
        parts = [trainer.objective.forward(trainer.model, one) for one in batch.passes]
    outputs = gather_outputs(batch.passes, parts, trainer.context.device)
    outputs = replace(outputs, logps=outputs.logps.requires_grad_())
    loss = pass_loss(trainer, outputs, batch)
    (gradient,) = torch.autograd.grad(loss, outputs.logps)
    slopes = dict(zip(outputs.sequence_ids.tolist(), gradient.split(outputs.lengths.tolist()), strict=True))
    for one in batch.passes:
        with trainer.backend.pass_of_step(is_last=one is batch.passes[-1]):
            logps = trainer.objective.forward(trainer.backend.wrapped, one).logps
            slope = torch.cat([slopes[sequence] for sequence in one.sequence_ids.tolist()])
            weight = (not one.is_filler) * _one_or_nan([loss.detach()])
            trainer.backend.backward((logps * slope).sum() * weight)
        trainer.hooks.heartbeat()
    return loss.detach() / ranks.world_size()


def pass_loss(
    trainer: Trainer, outputs: TokenLogprobs, batch: GlobalBatch, *, is_filler: bool = False
) -> Tensor:
    """A pass's part of the batch's mean loss, times the number of processes, which are averaged. A filler
    counts 0.
    """
    values = trainer.objective.loss_and_metrics(outputs, batch)
    undeclared = values.keys() - set(trainer.context.spec.method.metrics)
    assert not undeclared, f"{sorted(undeclared)}: the method's schema does not name them in its metrics"
    if not is_filler:
        trainer.metrics.add(values)
        trainer.objective.observe(values)
    return values["loss"].sum() * (0 if is_filler else ranks.world_size() / batch.num_rows)


def _one_or_nan(losses: list[Tensor]) -> Tensor:
    """1, or NaN where a loss is not finite."""
    total = torch.stack(losses).sum()
    return 1 + (total - total)
