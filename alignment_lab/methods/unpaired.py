"""Methods on single answers that are labelled desirable or not: KTO with its reference point, BCO with its shift."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..config import BCO, KTO, Unpaired
from ..data import group_pairs
from ..distributed import collectives, ranks
from ..engine.logprobs import TokenLogprobs, token_logprobs
from ..engine.packing import ScoredSequence
from ..losses import SingleLoss
from ..training import GlobalBatch, LabTrainer
from ..training.context import TrainContext
from .referenced import check_first_step, reference_logps

Row = dict[str, Any]


def trainer(setting: TrainContext) -> UnpairedTrainer:
    """The trainer of the method; KTO's rows get their mismatched answers."""
    kto = isinstance(setting.spec.method, KTO)
    train, heldout = (
        mismatched(rows, setting.spec.data.max_length) if kto else rows
        for rows in (setting.train, setting.scored)
    )
    made = KTOTrainer if kto else BCOTrainer
    return made(setting, train, heldout)


def with_reference(setting: TrainContext, rows: list[Row]) -> list[Row]:
    """The rows with `ref_logps`, and `ref_KL_logps` where they have a mismatched answer, in nats."""
    asked = [ScoredSequence(row["prompt_ids"], row["completion_ids"]) for row in rows]
    aside = [
        ScoredSequence(row["prompt_ids"], row["KL_completion_ids"])
        for row in rows
        if "KL_completion_ids" in row
    ]
    found = [float(tokens.sum()) for tokens in reference_logps(setting, [*asked, *aside])] if rows else []
    rows = [{**row, "ref_logps": value} for row, value in zip(rows, found, strict=False)]
    return (
        [{**row, "ref_KL_logps": value} for row, value in zip(rows, found[len(rows) :], strict=True)]
        if aside
        else rows
    )


def mismatched(rows: list[Row], max_length: int) -> list[Row]:
    """The rows with an answer to another prompt (`KL_completion_ids`), chosen by content: the same for every order, seed and epoch.

    Prompts stand in the order of their hash, each takes the answers of the next one. One prompt alone has none, and then no row gets any.
    """
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row["prompt_ids"]), []).append(row)
    if len(groups) < 2:
        return rows
    order = sorted(groups, key=lambda prompt: hashlib.sha256(repr(prompt).encode()).digest())
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    answers = {prompt: sorted(row["completion_ids"] for row in found) for prompt, found in groups.items()}
    found: dict[int, list[int]] = {}
    for prompt, group in groups.items():
        others = answers[following[prompt]]
        for place, row in enumerate(sorted(group, key=lambda row: row["completion_ids"])):
            found[id(row)] = others[place % len(others)][: max_length - len(prompt)]
    return [{**row, "KL_completion_ids": found[id(row)]} for row in rows]


class UnpairedTrainer(LabTrainer):
    """Single labelled answers; the two halves of a pair stay together, and every batch has its share of both labels."""

    method: Unpaired

    def __init__(self, setting: TrainContext, train: list[Row], heldout: list[Row]) -> None:
        assert isinstance(setting.spec.method, Unpaired)
        self.method = setting.spec.method
        super().__init__(setting, train, heldout)

    def completed(self, rows: list[Row]) -> list[Row]:
        """With the reference's sums."""
        return with_reference(self.setting, rows)

    def sequences(self, row: Row) -> list[ScoredSequence]:
        """The answer."""
        return [ScoredSequence(row["prompt_ids"], row["completion_ids"])]

    def columns(self, rows: list[Row]) -> dict[str, Tensor]:
        """The label, and the reference's sums."""
        found = {"label": torch.tensor([row["label"] for row in rows])}
        return found | {
            name: torch.tensor([row[name] for row in rows])
            for name in ("ref_logps", "ref_KL_logps")
            if name in rows[0]
        }

    def units(self) -> tuple[list[list[int]], list[Any]]:
        """Pairs and single rows, by their labels."""
        found = group_pairs(self.rows)
        return found, [tuple(self.rows[place]["label"] for place in unit) for unit in found]

    def judge(self, policy: Tensor, reference: Tensor, desirable: Tensor, batch: GlobalBatch) -> SingleLoss:
        """The objective: [B] each."""
        raise NotImplementedError

    def values(self, seen: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics, each over the rows of its label."""
        policy, desirable, reference = (
            seen.sum_by_sequence(seen.logps),
            batch.columns["label"][seen.sequence_ids],
            batch.columns["ref_logps"][seen.sequence_ids],
        )
        if self.model.training and self.state.global_step == 0:
            check_first_step(self.setting, policy, reference, seen.lengths)
        found = self.judge(policy, reference, desirable, batch)
        metrics = {"loss": found.losses}
        for name, which in (("chosen", desirable), ("rejected", ~desirable)):
            metrics |= {f"rewards/{name}": found.rewards[which], f"logps/{name}": policy.detach()[which]}
        return metrics | {name: value[None] for name, value in batch.facts.items()}

    def heldout_values(self, initial: bool) -> dict[str, Tensor]:
        """With margins where all rows are halves of pairs, as pairwise methods have them. The initial policy is the reference."""
        if initial:
            sums = torch.tensor([row["ref_logps"] for row in self.heldout])
            ones = torch.ones(len(sums), dtype=torch.long)
            batch = GlobalBatch([], len(sums), self.columns(self.heldout))
            batch.facts = self.informed(batch)
            found = self.values(TokenLogprobs(sums, 0 * ones, ones, ones.cumsum(0) - 1), batch)
        else:
            found = super().heldout_values(initial)
        if all(len(unit) == 2 for unit in group_pairs(self.heldout)):
            margins = (
                found["rewards/chosen"] - found["rewards/rejected"]
            )  # halves share their prompt, and so stand in the same order
            found |= {"rewards/margins": margins, "rewards/accuracies": losses.accuracy(margins)}
        return found

    def derived(self, logs: dict[str, float]) -> None:
        """The margin is a difference of means, as the answers are not paired."""
        for prefix in ("", "eval_"):
            chosen, rejected = (logs.get(f"{prefix}rewards/{name}") for name in ("chosen", "rejected"))
            if chosen is not None and rejected is not None:
                logs[f"{prefix}rewards/margins"] = chosen - rejected


class KTOTrainer(UnpairedTrainer):
    """KTO: the reference point is estimated on the whole global batch, before its first gradient."""

    def __init__(self, setting: TrainContext, train: list[Row], heldout: list[Row]) -> None:
        super().__init__(setting, train, heldout)
        assert isinstance(self.method, KTO)
        good = sum(row["label"] for row in train)
        bad = len(train) - good
        given = (self.method.desirable_weight, self.method.undesirable_weight)
        balanced = losses.balanced_weights(good, bad) if given == (None, None) else (1.0, 1.0)
        self.weights = tuple(
            one if weight is None else weight for weight, one in zip(given, balanced, strict=True)
        )
        said = f"labels: {good} desirable, weight {self.weights[0]:.3g}; {bad} undesirable, weight {self.weights[1]:.3g}"
        setting.console.print(said, highlight=False)

    def aside(self, rows: list[Row]) -> list[ScoredSequence]:
        """Every prompt with an answer to another one."""
        return [
            ScoredSequence(row["prompt_ids"], row["KL_completion_ids"])
            for row in rows
            if "KL_completion_ids" in row
        ]

    def informed(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """The reference point, in nats; none without a second prompt to take answers from."""
        if not batch.aside:
            return {}
        seen = self.joined(batch.aside, [token_logprobs(self.model, pack) for pack in batch.aside])
        return {"kl": losses.kto_kl(seen.sum_by_sequence(seen.logps), batch.columns["ref_KL_logps"][seen.sequence_ids])}

    def judge(self, policy: Tensor, reference: Tensor, desirable: Tensor, batch: GlobalBatch) -> SingleLoss:
        """KTO's loss; without a second prompt to take answers from, its reference point is 0."""
        kl = batch.facts.get("kl", policy.new_zeros(()))
        good, bad = self.weights
        return losses.kto(
            policy,
            reference,
            desirable,
            kl=kl,
            beta=self.method.beta,
            desirable_weight=good,
            undesirable_weight=bad,
        )


class BCOTrainer(UnpairedTrainer):
    """BCO: the shift is the mean reward over all steps before this one, kept in checkpoints."""

    def __init__(self, setting: TrainContext, train: list[Row], heldout: list[Row]) -> None:
        assert isinstance(setting.spec.method, BCO)
        super().__init__(setting, train, heldout)
        self.total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        self.count = 0

    def informed(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """The shift, over the rows of all processes in all steps before."""
        total, count = self._totals_so_far()
        return {"shift": (total / max(count, 1)).to(self.args.device)}

    def _totals_so_far(self) -> tuple[Tensor, int]:
        """Rewards and rows so far, of all processes."""
        if ranks.world_size() == 1:
            return self.total, self.count
        everyone = collectives.all_gather((self.total.cpu(), self.count))
        return torch.stack([total for total, _ in everyone]).sum(), sum(count for _, count in everyone)

    def judge(self, policy: Tensor, reference: Tensor, desirable: Tensor, batch: GlobalBatch) -> SingleLoss:
        """BCO's loss; this batch's rewards count from the next step on, so that its packs share one shift."""
        found = losses.bco(
            policy, reference, desirable, beta=self.method.beta, shift=batch.facts["shift"].to(policy.dtype)
        )
        if self.model.training and not self.spare:
            self.total = self.total + found.rewards.double().sum()
            self.count += len(found.rewards)
        return found

    def remembered(self) -> dict[str, Any]:
        """The sum and the number of rewards."""
        total, count = self._totals_so_far()
        return {"total": total.item(), "count": count}

    def remember(self, kept: dict[str, Any]) -> None:
        """The first process has all of it, as they are added up."""
        if ranks.is_main_process():
            self.total, self.count = self.total.new_tensor(kept["total"]), kept["count"]
