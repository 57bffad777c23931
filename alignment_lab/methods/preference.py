"""Every pairwise method: one objective, one batch layout, the losses of losses.PAIRWISE_LOSSES."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..config import Divergence, Divergent, Pairwise
from ..config.plugins import plugin_loss
from ..data import Chained, Mapped, Row
from ..engine.logprobs import TokenLogprobs
from ..engine.packing import ScoredSequence
from ..losses import (
    PAIRWISE_LOSSES,
    PairLogprobs,
    PairLoss,
    length_damped_sum,
    log_ratios,
    pair_accuracy,
    per_token,
    under_divergence,
    with_rewards,
    wpo_weights,
)
from ..training import Objective, TrainContext
from ..training.batch import GlobalBatch
from .implicit_rewards import implicit_rewards
from .referenced import check_first_step, reference_logps

PAIR_KEYS = ("chosen", "rejected")
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
INITIAL_COLUMNS = ("initial_chosen_logps", "initial_rejected_logps")  # plain sums under the initial policy


def bind_loss(method: Pairwise) -> Callable[..., PairLoss]:
    """The loss with the method's settings: each keyword-only parameter is a field of the schema."""
    if method.parts:
        return partial(
            PAIRWISE_LOSSES[method.name], parts=[(weight, bind_loss(part)) for weight, part in method.parts]
        )
    function = plugin_loss(method) or PAIRWISE_LOSSES[method.name]
    parameters = inspect.signature(function).parameters.values()
    keywords = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    loss = partial(function, **{name: getattr(method, name) for name in keywords})
    return partial(_divergent_loss, loss, method) if isinstance(method, Divergent) else loss


def _divergent_loss(
    loss: Callable[..., PairLoss], method: Divergent, policy: PairLogprobs, reference: PairLogprobs
) -> PairLoss:
    """The divergence is applied once, before the loss. Rewards are those of reverse KL, as in TRL."""
    pair_loss = loss(*under_divergence(policy, reference, method.divergence, method.divergence_alpha))
    if method.divergence is Divergence.reverse_kl:
        return pair_loss
    return with_rewards(pair_loss.losses, method.beta, *log_ratios(policy, reference))


def pair_sequences(row: Row, *, scores_prompt: bool = False) -> list[ScoredSequence]:
    """Chosen and rejected answer of a row; with `scores_prompt`, the chosen one's prompt is scored too."""
    chosen, rejected = (ScoredSequence(row["prompt_ids"], row[f"{answer}_ids"]) for answer in PAIR_KEYS)
    if scores_prompt:
        chosen = replace(chosen, labels=chosen.prompt + chosen.answer)
    return [chosen, rejected]


@dataclass(frozen=True)
class PairOutputs:
    """The policy's log-probabilities of B pairs, as the losses take them: [B] each."""

    logps: PairLogprobs
    nll: Tensor  # of the chosen sequence's scored tokens, summed
    weights: Tensor | None  # WPO's


class PreferenceObjective(Objective):
    """Pairs, with the reference's log-probabilities as columns where the method has a reference."""

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        method = context.spec.method
        assert isinstance(method, Pairwise)
        self.method, self.loss = method, bind_loss(method)
        self.logprob_options = {"log_sum_squares": method.wpo}

    def reference_columns(self, rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
        """REFERENCE_COLUMNS in nats, summed as the method sums, and INITIAL_COLUMNS, where the method has a
        reference.
        """
        if not self.method.needs_reference:
            return {}

        def answers(number: int) -> Mapped:
            return Mapped(rows, lambda _, row: pair_sequences(row)[number])

        logps = reference_logps(self.context, Chained([answers(0), answers(1)]))
        pairs = list(zip(logps[: len(rows)], logps[len(rows) :], strict=True))
        reference = [[self._reference_sum(tokens, min(map(len, pair))) for tokens in pair] for pair in pairs]
        initial = [[float(tokens.sum()) for tokens in pair] for pair in pairs]
        return {
            name: [sums[number] for sums in table]
            for names, table in ((REFERENCE_COLUMNS, reference), (INITIAL_COLUMNS, initial))
            for number, name in enumerate(names)
        }

    def with_initial_logps(self, rows: Sequence[Row], outputs: TokenLogprobs) -> list[Row]:
        """With INITIAL_COLUMNS."""
        sums = _answer_sums(outputs).double().tolist()
        pairs = zip(rows, sums[::2], sums[1::2], strict=True)
        return [{**row, **dict(zip(INITIAL_COLUMNS, pair, strict=True))} for row, *pair in pairs]

    def _reference_sum(self, logps: Tensor, shared_length: int) -> float:
        """One answer's token log-probabilities, summed as `_sums` does."""
        damping = self.method.length_damping
        if damping is None:
            return float(logps.sum())
        return float(logps[:shared_length].sum() + damping * logps[shared_length:].sum())

    def score_inputs(self, row: Row) -> list[ScoredSequence]:
        """Chosen, then rejected."""
        return pair_sequences(row, scores_prompt=self.method.scores_prompt)

    def batch_columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The reference's sums, and the number of tokens that the NLL is over."""
        columns = {
            "nll_tokens": torch.tensor([len(self.score_inputs(row)[0].scored_tokens()) for row in rows])
        }
        if self.method.needs_reference:
            columns |= {name: torch.tensor([row[name] for row in rows]) for name in REFERENCE_COLUMNS}
        return columns

    def loss_and_metrics(self, outputs: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics."""
        policy = self._pair_outputs(outputs)
        rows = outputs.sequence_ids[::2] // 2  # of the batch: a pair is never separated
        return self._loss_and_metrics(policy, self._reference(batch, rows, policy.logps), batch)

    def _loss_and_metrics(
        self, policy: PairOutputs, reference: PairLogprobs | None, batch: GlobalBatch
    ) -> dict[str, Tensor]:
        pair_loss = self.loss(policy.logps, reference) if reference else self.loss(policy.logps)
        loss, metrics = pair_loss.losses, {}
        if self.method.sft_weight:
            # its mean over rows is that over tokens
            nll = policy.nll * (batch.num_rows / batch.columns["nll_tokens"].sum())
            loss = loss + self.method.sft_weight * nll
            metrics["nll_loss"] = nll.detach()
        if policy.weights is not None:
            # the whole of a pair's loss, its NLL included: so does TRL with its term `sft`
            loss = loss * policy.weights
        margins = pair_loss.chosen_rewards - pair_loss.rejected_rewards
        chosen_logps, rejected_logps = self._logged_logps(policy.logps)
        return {
            "loss": loss,
            "rewards/chosen": pair_loss.chosen_rewards,
            "rewards/rejected": pair_loss.rejected_rewards,
            "rewards/accuracies": pair_accuracy(margins),
            "rewards/margins": margins,
            "logps/chosen": chosen_logps.detach(),
            "logps/rejected": rejected_logps.detach(),
            **metrics,
        }

    def _logged_logps(self, policy: PairLogprobs) -> tuple[Tensor, Tensor]:
        if not self.method.averages_logps:
            return policy.chosen, policy.rejected
        chosen = per_token(policy.chosen, policy.chosen_lengths)
        return chosen, per_token(policy.rejected, policy.rejected_lengths)

    def _pair_outputs(self, outputs: TokenLogprobs) -> PairOutputs:
        in_answer = outputs.offsets >= 0  # [S]
        lengths = outputs.sum_by_sequence(in_answer.to(outputs.logps.dtype))  # [2B]
        sums = self._sums(outputs, in_answer, lengths)
        weights = None
        if outputs.log_sum_squares is not None and self.method.wpo:
            aligned = torch.where(in_answer, outputs.logps - outputs.log_sum_squares, 0.0)
            means = outputs.sum_by_sequence(aligned) / lengths.clamp(min=1)
            weights = wpo_weights(means[::2], means[1::2])
        logps = PairLogprobs(sums[::2], sums[1::2], lengths[::2], lengths[1::2])
        return PairOutputs(logps, -outputs.sum_by_sequence(outputs.logps)[::2], weights)

    def _sums(self, outputs: TokenLogprobs, in_answer: Tensor, lengths: Tensor) -> Tensor:
        """Each answer's log-probability: [2B] nats."""
        damping = self.method.length_damping
        if damping is None:
            return _answer_sums(outputs)
        shared = torch.minimum(lengths[::2], lengths[1::2]).repeat_interleave(2)
        owners = outputs.segment_ids
        return length_damped_sum(outputs.logps, owners, outputs.offsets, shared, len(lengths), alpha=damping)

    def _reference(self, batch: GlobalBatch, rows: Tensor, policy: PairLogprobs) -> PairLogprobs | None:
        if not self.method.needs_reference:
            return None
        chosen, rejected = (batch.columns[name][rows] for name in REFERENCE_COLUMNS)
        reference = replace(policy, chosen=chosen, rejected=rejected)
        if batch.is_first_step:
            check_first_step(self.context, batch, policy.chosen, chosen, policy.chosen_lengths)
            check_first_step(self.context, batch, policy.rejected, rejected, policy.rejected_lengths)
        return reference

    def heldout_values(
        self, outputs: TokenLogprobs, batch: GlobalBatch, rows: Sequence[Row]
    ) -> dict[str, Tensor]:
        """TRL's metrics, and the implicit rewards where the initial policy was asked."""
        values = self.loss_and_metrics(outputs, batch)
        if not all(name in row for row in rows for name in INITIAL_COLUMNS):
            return values
        sums = _answer_sums(outputs)
        return values | self._implicit_rewards(sums[::2], sums[1::2], rows)

    def _implicit_rewards(self, chosen: Tensor, rejected: Tensor, rows: Sequence[Row]) -> dict[str, Tensor]:
        initial = (
            torch.tensor([row[name] for row in rows], dtype=torch.float64, device=chosen.device)
            for name in INITIAL_COLUMNS
        )
        gains = (sums.double() - start for sums, start in zip((chosen, rejected), initial, strict=True))
        return implicit_rewards(*gains, paired=True)

    def initial_heldout_values(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        """The initial policy is the reference: it need not be asked again, where the reference's sums say
        all.
        """
        other_sums = self.method.length_damping is not None and self.method.sft_weight  # not those of the NLL
        if not self.method.needs_reference or self.method.wpo or other_sums:
            return None
        columns = self.batch_columns(rows)
        lengths = (torch.tensor([len(row[f"{answer}_ids"]) for row in rows]) for answer in PAIR_KEYS)
        reference = PairLogprobs(*(columns[name] for name in REFERENCE_COLUMNS), *lengths)
        policy = PairOutputs(reference, -reference.chosen, None)
        values = self._loss_and_metrics(policy, reference, GlobalBatch([], len(rows), columns))
        no_gain = torch.zeros(len(rows), dtype=torch.float64)
        return values | implicit_rewards(no_gain, no_gain, paired=True)


def _answer_sums(outputs: TokenLogprobs) -> Tensor:
    """Each answer's log-probability, every token counted alike: [2B] nats."""
    return outputs.sum_by_sequence(torch.where(outputs.offsets >= 0, outputs.logps, 0.0))
