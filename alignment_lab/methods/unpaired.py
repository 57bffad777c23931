"""Methods on single answers that are labeled desirable or not: KTO with its reference point, BCO with its
shift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import BCO, KTO, Unpaired
from ..data import Chained, Mapped, Row, count_labels, group_pairs
from ..distributed import collectives, ranks
from ..engine.logprobs import TokenLogprobs, token_logprobs
from ..engine.packing import ScoredSequence
from ..losses import SingleLoss, balanced_weights, bco, kto, kto_kl
from ..training import Objective, TrainContext
from ..training.batch import GlobalBatch, gather_outputs
from .implicit_rewards import implicit_rewards
from .referenced import check_first_step, reference_logps


class UnpairedObjective(Objective):
    """Single labeled answers; the two halves of a pair stay together, and every batch has its share of both
    labels.
    """

    method: Unpaired

    def reference_columns(self, rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
        """`ref_logps`, in nats."""
        answers = Mapped(rows, lambda _, row: self.score_inputs(row)[0])
        return {"ref_logps": [float(tokens.sum()) for tokens in reference_logps(self.context, answers)]}

    def score_inputs(self, row: Row) -> list[ScoredSequence]:
        """The answer."""
        return [ScoredSequence(row["prompt_ids"], row["completion_ids"])]

    def batch_columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The label, and the reference's sums."""
        names = [name for name in ("label", "ref_logps", "ref_KL_logps") if name in rows[0]]
        return {name: torch.tensor([row[name] for row in rows]) for name in names}

    def groups(self, rows: Sequence[Row]) -> tuple[list[list[int]], list[Hashable]]:
        """Pairs and single rows, by their labels."""
        groups = group_pairs(rows)
        return groups, [tuple(rows[index]["label"] for index in group) for group in groups]

    def single_loss(
        self, policy: Tensor, reference: Tensor, desirable: Tensor, batch: GlobalBatch
    ) -> SingleLoss:
        """The loss of labeled answers: [B] each."""
        raise NotImplementedError

    def loss_and_metrics(self, outputs: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics, each over the rows of its label."""
        policy = outputs.sum_by_sequence(outputs.logps)
        desirable = batch.columns["label"][outputs.sequence_ids]
        reference = batch.columns["ref_logps"][outputs.sequence_ids]
        if batch.is_first_step:
            check_first_step(self.context, batch, policy, reference, outputs.lengths)
        loss = self.single_loss(policy, reference, desirable, batch)
        metrics = {"loss": loss.losses}
        for name, rows in (("chosen", desirable), ("rejected", ~desirable)):
            metrics |= {f"rewards/{name}": loss.rewards[rows], f"logps/{name}": policy.detach()[rows]}
        return metrics | {name: value[None] for name, value in batch.aux_stats.items()}

    def heldout_values(
        self, outputs: TokenLogprobs, batch: GlobalBatch, rows: Sequence[Row]
    ) -> dict[str, Tensor]:
        """With the implicit rewards. Margins and accuracies only where all rows are halves of pairs, as
        pairwise methods have them: among single answers none is made up.
        """
        values = self.loss_and_metrics(outputs, batch)
        paired = all(len(group) == 2 for group in group_pairs(rows))
        if paired:
            values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
        desirable = batch.columns["label"]
        gains = outputs.sum_by_sequence(outputs.logps).double() - batch.columns["ref_logps"]
        return values | implicit_rewards(gains[desirable], gains[~desirable], paired=paired)

    def rows_of_metric(self, name: str, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows of a label; a pair's margin stands with its chosen answer."""
        part = name.rpartition("/")[2]
        if part in ("chosen", "rejected", "margins", "accuracies"):
            return [row for row in rows if row["label"] is not (part == "rejected")]
        return rows

    def initial_heldout_values(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        """The initial policy is the reference: it need not be asked again."""
        sums = torch.tensor([row["ref_logps"] for row in rows])
        ones = torch.ones(len(sums), dtype=torch.long)
        batch = GlobalBatch([], len(sums), self.batch_columns(rows))
        batch.aux_stats = self.aux_stats(batch)
        return self.heldout_values(TokenLogprobs(sums, 0 * ones, ones, ones.cumsum(0) - 1), batch, rows)

    def derive(self, logged: dict[str, float]) -> None:
        """The margin is a difference of means, as the answers are not paired."""
        for prefix in ("", "eval_"):
            chosen, rejected = (logged.get(f"{prefix}rewards/{name}") for name in ("chosen", "rejected"))
            if chosen is not None and rejected is not None:
                logged[f"{prefix}rewards/margins"] = chosen - rejected


class KTOObjective(UnpairedObjective):
    """KTO: the reference point is estimated on the whole global batch, before its first gradient."""

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        method = context.spec.method
        assert isinstance(method, KTO)
        self.method = method
        good, bad = count_labels(context.train_rows)
        given = (method.desirable_weight, method.undesirable_weight)
        balanced = balanced_weights(good, bad) if given == (None, None) else (1.0, 1.0)
        weights = [usual if weight is None else weight for weight, usual in zip(given, balanced, strict=True)]
        self.weights = (weights[0], weights[1])
        context.notify(
            f"labels: {good} desirable, weight {weights[0]:.3g}; {bad} undesirable, weight {weights[1]:.3g}"
        )

    def prepare_rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """With an answer to another prompt each."""
        return with_mismatched_answers(rows, self.context.spec.data.max_length)

    def reference_columns(self, rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
        """`ref_logps`, and `ref_KL_logps` where a row has a mismatched answer, in nats.

        Training and held-out rows are matched apart, so the ones may have such answers where the others,
        with one prompt alone, have none.
        """
        matched = [place for place, row in enumerate(rows) if "KL_completion_ids" in row]
        answers = Mapped(rows, lambda _, row: self.score_inputs(row)[0])
        mismatched = Mapped(rows, lambda _, row: self.aux_sequences([row])[0], matched)
        sums = [
            float(tokens.sum()) for tokens in reference_logps(self.context, Chained([answers, mismatched]))
        ]
        of_mismatched = dict(zip(matched, sums[len(rows) :], strict=True))
        return {"ref_logps": sums[: len(rows)], "ref_KL_logps": [*map(of_mismatched.get, range(len(rows)))]}

    def aux_sequences(self, rows: Sequence[Row]) -> list[ScoredSequence]:
        """Every prompt with an answer to another one."""
        return [
            ScoredSequence(row["prompt_ids"], row["KL_completion_ids"])
            for row in rows
            if "KL_completion_ids" in row
        ]

    def aux_stats(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """The reference point in nats: KTO's KL term. None without a second prompt to take answers from."""
        if not batch.aux_passes:
            return {}
        outputs = [token_logprobs(self.context.model, one) for one in batch.aux_passes]
        policy = gather_outputs(batch.aux_passes, outputs, self.context.device)
        reference = batch.columns["ref_KL_logps"][policy.sequence_ids]
        return {"kl": kto_kl(policy.sum_by_sequence(policy.logps), reference)}

    def single_loss(
        self, policy: Tensor, reference: Tensor, desirable: Tensor, batch: GlobalBatch
    ) -> SingleLoss:
        """KTO's loss; without a second prompt its reference point is 0."""
        kl = batch.aux_stats.get("kl", policy.new_zeros(()))
        good, bad = self.weights
        return kto(
            policy,
            reference,
            desirable,
            kl=kl,
            beta=self.method.beta,
            desirable_weight=good,
            undesirable_weight=bad,
        )


class BCOObjective(UnpairedObjective):
    """BCO: the shift is the mean reward over all steps before this one, kept in checkpoints."""

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        assert isinstance(context.spec.method, BCO)
        self.method = context.spec.method
        self.total = torch.zeros((), dtype=torch.float64, device=context.device)  # of this process's rewards
        self.count = 0

    def aux_stats(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """The shift: the mean reward of all processes' rows in all steps before."""
        total, count = self._totals()
        return {"shift": (total / max(count, 1)).to(self.context.device)}

    def single_loss(
        self, policy: Tensor, reference: Tensor, desirable: Tensor, batch: GlobalBatch
    ) -> SingleLoss:
        """BCO's loss."""
        shift = batch.aux_stats["shift"].to(policy.dtype)
        return bco(policy, reference, desirable, beta=self.method.beta, shift=shift)

    def observe(self, metrics: Mapping[str, Tensor]) -> None:
        """Add this pass's rewards: they count from the next step on, so that a step's passes share one
        shift.
        """
        for rewards in (metrics["rewards/chosen"], metrics["rewards/rejected"]):
            self.total = self.total + rewards.double().sum()
            self.count += len(rewards)

    def _totals(self) -> tuple[Tensor, int]:
        """Rewards and rows so far, of all processes."""
        if ranks.world_size() == 1:
            return self.total, self.count
        everyone = collectives.all_gather((self.total.cpu(), self.count))
        return torch.stack([total for total, _ in everyone]).sum(), sum(count for _, count in everyone)

    def state_dict(self) -> dict[str, Any]:
        """The sum and the number of rewards."""
        total, count = self._totals()
        return {"total": total.item(), "count": count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The main process has all of it, as the processes' are added up."""
        if ranks.is_main_process():
            self.total, self.count = self.total.new_tensor(state["total"]), state["count"]


def with_mismatched_answers(rows: Sequence[Row], max_length: int) -> Sequence[Row]:
    """The rows with an answer to another prompt each (`KL_completion_ids`), for KTO's reference point.

    Prompts stand in the order of their hash, and a prompt's rows take the next prompt's answers one by one,
    from the first again where those are fewer. It depends on the content of these rows alone, and on no
    order, seed or epoch, so that the reference's log-probabilities are computed once. (The paper and TRL
    shift the answers of a micro-batch by one instead: another draw of the same kind, anew for each order.)
    An answer is cut so that it fills `max_length` behind its new prompt. One prompt alone has no other, and
    then no row gets any.
    """
    prompts: dict[bytes, list[int]] = {}  # rows by the digest of their prompt
    for place, row in enumerate(rows):
        digest = hashlib.sha256(repr(tuple(row["prompt_ids"])).encode()).digest()
        prompts.setdefault(digest, []).append(place)
    if len(prompts) < 2:
        return rows
    groups = [
        sorted(places, key=lambda place: (rows[place]["completion_ids"], rows[place]["label"]))
        for _, places in sorted(prompts.items())
    ]
    partners = [0] * len(rows)  # the row whose answer each gets
    for group, others in zip(groups, [*groups[1:], groups[0]], strict=True):
        for number, place in enumerate(group):
            partners[place] = others[number % len(others)]

    def complete(place: int, row: Row) -> Row:
        answer = rows[partners[place]]["completion_ids"]
        return {**row, "KL_completion_ids": answer[: max_length - len(row["prompt_ids"])]}

    return Mapped(rows, complete)
