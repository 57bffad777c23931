"""Every pairwise method: one trainer, one batch layout, one table of losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..config import LDDPO, ORPO, Method, Pairwise
from ..engine.logprobs import TokenLogprobs
from ..engine.packing import ScoredSequence
from ..losses import PairLogprobs, PairLoss
from ..training import GlobalBatch, LabTrainer
from ..training.context import TrainContext
from .referenced import check_first_step, reference_logps

Row = dict[str, Any]
ANSWERS = ("chosen", "rejected")
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
PAIRWISE_LOSSES: dict[str, Callable[..., PairLoss]] = {
    "dpo": losses.dpo,
    "robust_dpo": losses.robust_dpo,
    "ipo": losses.ipo,
    "hinge": losses.hinge,
    "exo": losses.exo,
    "nca": losses.nca,
    "sppo": losses.sppo,
    "aot": losses.aot,
    "apo_zero": losses.apo_zero,
    "apo_down": losses.apo_down,
    "bco_pair": losses.bco_pair,
    "discopop": losses.discopop,
    "dpo_norm": losses.dpo_norm,
    "ld_dpo": losses.ld_dpo,
    "mpo": losses.mpo,
    "orpo": losses.orpo,
    "simpo": losses.simpo,
    "cpo": losses.cpo,
}


def bound(method: Method) -> Callable[..., PairLoss]:
    """The objective with the method's settings: its keyword-only parameters are fields of the spec."""
    function = PAIRWISE_LOSSES[method.name]
    knobs = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    return partial(function, **{name: getattr(method, name) for name in knobs})


def trainer(setting: TrainContext) -> PreferenceTrainer:
    """The trainer of every pairwise method."""
    return PreferenceTrainer(setting, setting.train, setting.scored)


def with_reference(setting: TrainContext, rows: list[Row]) -> list[Row]:
    """The rows with COLUMNS, in nats, summed as the method sums."""
    found = reference_logps(setting, [pair for row in rows for pair in sequences(row)])
    alpha = setting.spec.method.alpha if isinstance(setting.spec.method, LDDPO) else None
    attached = []
    for row, chosen, rejected in zip(rows, found[::2], found[1::2], strict=True):
        public = min(len(chosen), len(rejected))
        sums = [
            float(tokens.sum() if alpha is None else tokens[:public].sum() + alpha * tokens[public:].sum())
            for tokens in (chosen, rejected)
        ]
        attached.append({**row, **dict(zip(REFERENCE_COLUMNS, sums, strict=True))})
    return attached


def sequences(row: Row, prompt_loss: bool = False) -> list[ScoredSequence]:
    """Chosen and rejected answer of a row; with `prompt_loss`, the chosen one's prompt is scored too."""
    chosen, rejected = (ScoredSequence(row["prompt_ids"], row[f"{answer}_ids"]) for answer in ANSWERS)
    return [replace(chosen, labels=chosen.prompt + chosen.answer) if prompt_loss else chosen, rejected]


@dataclass(frozen=True)
class Said:
    """What a policy says of B pairs, as the objectives take it: [B] each."""

    logps: PairLogprobs
    nll: Tensor  # of the chosen sequence's scored tokens, summed
    weights: Tensor | None  # WPO's


class PreferenceTrainer(LabTrainer):
    """Pairs, with the reference's log-probabilities as columns where the method has a reference."""

    def __init__(self, setting: TrainContext, train: list[Row], heldout: list[Row]) -> None:
        method = setting.spec.method
        assert isinstance(method, Pairwise)
        self.method, self.objective = method, bound(method)
        self.prompt_loss = isinstance(method, ORPO) and method.prompt_loss and method.sft_weight > 0
        self.wants = {"log_sum_squares": method.wpo}
        super().__init__(setting, train, heldout)

    def completed(self, rows: list[Row]) -> list[Row]:
        """With the reference's sums, where the method has a reference."""
        return with_reference(self.setting, rows) if self.method.needs_reference else rows

    def sequences(self, row: Row) -> list[ScoredSequence]:
        """Chosen, then rejected."""
        return sequences(row, self.prompt_loss)

    def columns(self, rows: list[Row]) -> dict[str, Tensor]:
        """The reference's sums, and how many tokens the NLL is over."""
        found = {"nll_tokens": torch.tensor([len(self.sequences(row)[0].scored()) for row in rows])}
        if self.method.needs_reference:
            found |= {name: torch.tensor([row[name] for row in rows]) for name in REFERENCE_COLUMNS}
        return found

    def values(self, seen: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics."""
        places = seen.sequence_ids[::2] // 2  # which rows of the batch: a pair is never parted
        said = self._said(seen)
        return self._values(said, self._reference(batch, places, said.logps), batch)

    def _values(self, said: Said, reference: PairLogprobs | None, batch: GlobalBatch) -> dict[str, Tensor]:
        found = self.objective(said.logps, reference) if reference else self.objective(said.logps)
        loss = found.losses if said.weights is None else found.losses * said.weights
        metrics = {}
        if self.method.sft_weight:
            nll = said.nll * (
                batch.rows / batch.columns["nll_tokens"].sum()
            )  # its mean over rows is the mean over tokens
            loss = loss + self.method.sft_weight * nll
            metrics["nll_loss"] = nll.detach()
        margins = found.chosen_rewards - found.rejected_rewards
        return {
            "loss": loss,
            "rewards/chosen": found.chosen_rewards,
            "rewards/rejected": found.rejected_rewards,
            "rewards/accuracies": losses.accuracy(margins),
            "rewards/margins": margins,
            "logps/chosen": said.logps.chosen.detach(),
            "logps/rejected": said.logps.rejected.detach(),
            **metrics,
        }

    def _said(self, seen: TokenLogprobs) -> Said:
        answer = seen.offsets >= 0  # [S]
        lengths = seen.sum_by_sequence(answer.to(seen.logps.dtype))  # [2B]
        sums = (
            self._summed(seen, lengths)
            if isinstance(self.method, LDDPO)
            else seen.sum_by_sequence(torch.where(answer, seen.logps, 0.0))
        )
        weights = None
        if seen.log_sum_squares is not None and self.method.wpo:
            means = seen.sum_by_sequence(torch.where(answer, seen.logps - seen.log_sum_squares, 0.0)) / lengths.clamp(min=1)
            weights = losses.wpo_weights(means[::2], means[1::2])
        return Said(
            PairLogprobs(sums[::2], sums[1::2], lengths[::2], lengths[1::2]),
            -seen.sum_by_sequence(seen.logps)[::2],
            weights,
        )

    def _summed(self, seen: TokenLogprobs, lengths: Tensor) -> Tensor:
        """LD-DPO's sums: [2B]."""
        assert isinstance(self.method, LDDPO)
        public = torch.minimum(lengths[::2], lengths[1::2]).repeat_interleave(2)
        return losses.length_damped_sum(
            seen.logps, seen.segment_ids, seen.offsets, public, len(lengths), alpha=self.method.alpha
        )

    def _reference(self, batch: GlobalBatch, places: Tensor, policy: PairLogprobs) -> PairLogprobs | None:
        if not self.method.needs_reference:
            return None
        reference = replace(
            policy,
            **{
                answer: batch.columns[name][places]
                for answer, name in zip(ANSWERS, REFERENCE_COLUMNS, strict=True)
            },
        )
        if self.model.training and self.state.global_step == 0:
            for answer in ANSWERS:
                lengths = getattr(policy, f"{answer}_lengths")
                check_first_step(self.setting, getattr(policy, answer), getattr(reference, answer), lengths)
        return reference

    def heldout_values(self, initial: bool) -> dict[str, Tensor]:
        """The initial policy is the reference: it need not be asked again."""
        unlike = (
            isinstance(self.method, LDDPO) and self.method.sft_weight
        )  # its sums are not those of the NLL
        if not initial or not self.method.needs_reference or self.method.wpo or unlike:
            return super().heldout_values(initial)
        columns = self.columns(self.heldout)
        lengths = (torch.tensor([len(row[f"{answer}_ids"]) for row in self.heldout]) for answer in ANSWERS)
        reference = PairLogprobs(*(columns[name] for name in REFERENCE_COLUMNS), *lengths)
        return self._values(
            Said(reference, -reference.chosen, None), reference, GlobalBatch([], len(self.heldout), columns)
        )
