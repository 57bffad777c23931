"""A reward model: a score of each answer, from a head on its last token, trained on pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..data.pack import Scored
from ..logprobs import Batch, Seen, last_hidden
from ..spec import Reward
from ..training import GlobalBatch, LabTrainer
from .preference import sequences
from .setting import Setting

Row = dict[str, Any]


def trainer(setting: Setting) -> RewardTrainer:
    """Bradley-Terry on pairs."""
    return RewardTrainer(setting, setting.train, setting.scored)


class RewardTrainer(LabTrainer):
    """Pairs go through the engine as everywhere else; instead of the LM head, `score` looks at each answer's end."""

    def sequences(self, row: Row) -> list[Scored]:
        """Chosen, then rejected."""
        return sequences(row)

    def columns(self, rows: list[Row]) -> dict[str, Tensor]:
        """How much better the chosen answer is, where every row says so."""
        return {"margin": torch.tensor([float(row["margin"]) for row in rows])} if all("margin" in row for row in rows) else {}

    def see(self, model: Any, pack: Batch) -> Seen:
        """One score per sequence."""
        scorer = model.get_base_model() if hasattr(model, "get_base_model") else model
        scores = scorer.score(last_hidden(scorer.base_model, pack))[:, 0].float()  # [N]
        ones = torch.ones_like(pack.members)
        return Seen(scores, 0 * ones, ones, pack.members)

    def values(self, seen: Seen, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics of a reward trainer."""
        method = self.setting.spec.method
        assert isinstance(method, Reward)
        margin = batch.columns["margin"][seen.members[::2] // 2] if "margin" in batch.columns else None
        found = losses.reward(seen.logps[::2], seen.logps[1::2], margin=margin, centering=method.centering)
        gap = found.chosen_rewards - found.rejected_rewards
        return {
            "loss": found.losses,
            "accuracy": (gap > 0).float() + 0.5 * (gap == 0).float(),
            "margin": gap,
            "mean_reward": (found.chosen_rewards + found.rejected_rewards) / 2,
        }
