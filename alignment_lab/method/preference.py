"""Every pairwise method: one trainer, one batch layout, one table of losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from .. import losses
from ..eval.interval import Scores
from ..logprobs import Sequences, completion, completion_logprobs, sequences
from ..losses import PairLogprobs, PairLoss
from ..progress import shown
from ..reference import ANSWERS, COLUMNS, attach, score_pairs
from ..spec import DPO, Method
from ..training import LabTrainer
from .setting import Setting

Objective = Callable[[PairLogprobs, PairLogprobs], PairLoss]


def _dpo(method: DPO) -> Objective:
    return partial(losses.dpo, beta=method.beta, label_smoothing=method.label_smoothing)


OBJECTIVES: dict[type[Method], Callable[[Any], Objective]] = {DPO: _dpo}


def trainer(setting: Setting) -> PreferenceTrainer:
    """Score the reference (the model as it stands), then build the trainer."""
    rows = [*setting.train, *setting.scored]
    batch = setting.arguments["per_device_train_batch_size"]
    rows = attach(setting.model, rows, batch, setting.dtype, shown("reference", setting.console))
    split = len(setting.train)
    return PreferenceTrainer(setting, rows[:split], rows[split:])


class PreferenceTrainer(LabTrainer, Trainer):
    """transformers' Trainer on preference pairs whose reference log-probabilities are columns of the rows."""

    def __init__(self, setting: Setting, train: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> None:
        super().__init__(
            model=setting.model,
            args=TrainingArguments(**setting.arguments),
            train_dataset=train,
            data_collator=collate,
            processing_class=setting.tokenizer,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over rows: divide it by the accumulation steps
        self.setting, self.heldout = setting, heldout
        self.objective = OBJECTIVES[type(setting.spec.method)](setting.spec.method)
        self._since_log: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean loss of a micro-batch; its metrics stay on the device until they are logged."""
        sums = completion_logprobs(model, Sequences(inputs["input_ids"], inputs["labels"])).sums  # [2B]
        policy = PairLogprobs(*sums.view(-1, 2).unbind(1))
        found = self.objective(policy, PairLogprobs(*(inputs[name] for name in COLUMNS)))
        for name, values in metrics(policy, found).items():
            self._since_log[name].append(values.mean())
        loss = found.losses.mean()
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the micro-batches since the last log came to."""
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._since_log.items()}
            self._since_log.clear()
        super().log(logs, start_time)

    def heldout_scores(self, *, initial: bool = False) -> dict[str, Scores]:
        """Loss, rewards and log-probabilities of each held-out pair; the initial policy is the reference, so it costs nothing."""
        if not self.heldout:
            return {}
        reference = PairLogprobs(*(torch.tensor([row[name] for row in self.heldout]) for name in COLUMNS))
        policy = reference if initial else self._policy()
        found = self.objective(policy, reference)
        values = {"loss": found.losses, **metrics(policy, found)}
        return {f"eval_{name}": Scores(value.tolist(), share=name == "rewards/accuracies") for name, value in values.items()}

    def _policy(self) -> PairLogprobs:
        progress = shown("held-out rows", self.setting.console)
        batch = self.args.per_device_eval_batch_size
        return PairLogprobs(**score_pairs(self.model, self.heldout, batch, self.setting.dtype, progress))


def metrics(policy: PairLogprobs, found: PairLoss) -> dict[str, Tensor]:
    """TRL's names, one value per row: [B] each. A tie counts as half an accuracy: at the start every margin is 0."""
    margins = found.chosen_rewards - found.rejected_rewards
    return {
        "rewards/chosen": found.chosen_rewards,
        "rewards/rejected": found.rejected_rewards,
        "rewards/accuracies": (margins > 0).float() + 0.5 * (margins == 0).float(),
        "rewards/margins": margins,
        "logps/chosen": policy.chosen.detach(),
        "logps/rejected": policy.rejected.detach(),
    }


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """B rows -> input_ids and labels [2B, T], chosen and rejected in turn, and the reference's log-probabilities [B]."""
    batch = sequences([completion(row["prompt_ids"], row[f"{answer}_ids"]) for row in rows for answer in ANSWERS])
    return {"input_ids": batch.input_ids, "labels": batch.labels, **{name: torch.tensor([row[name] for row in rows]) for name in COLUMNS}}
