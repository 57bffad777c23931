"""A reward model: a score of each answer, from a head on its last token, trained on pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..config import Reward
from ..engine.layout import ForwardBatch
from ..engine.logprobs import TokenLogprobs, sequence_scores
from ..engine.packing import ScoredSequence
from ..training import GlobalBatch, LabTrainer
from ..training.context import TrainContext
from .preference import sequences

Row = dict[str, Any]


def trainer(setting: TrainContext) -> RewardTrainer:
    """Bradley-Terry on pairs."""
    return RewardTrainer(setting, setting.train, setting.scored)


class RewardTrainer(LabTrainer):
    """Pairs go through the engine as everywhere else; instead of the LM head, `score` looks at each answer's end."""

    def __init__(self, setting: TrainContext, train: list[Row], heldout: list[Row]) -> None:
        setting.model.config.get_text_config().pad_token_id = (
            setting.tokenizer.pad_token_id
        )  # who loads the model looks for it
        super().__init__(setting, train, heldout)

    def sequences(self, row: Row) -> list[ScoredSequence]:
        """Chosen, then rejected, up to the token that transformers' own forward scores: the last one that is no padding token.

        Where a tokenizer pads with its end of text, as many do, that is the token before the end.
        """
        return [
            replace(answer, answer=_unpadded(answer.answer, self.setting.tokenizer.pad_token_id))
            for answer in sequences(row)
        ]

    def columns(self, rows: list[Row]) -> dict[str, Tensor]:
        """How much better the chosen answer is, where every row says so."""
        return (
            {"margin": torch.tensor([float(row["margin"]) for row in rows])}
            if all("margin" in row for row in rows)
            else {}
        )

    def see(self, model: Any, pack: ForwardBatch) -> TokenLogprobs:
        """One score per sequence."""
        scores = sequence_scores(model, pack)
        ones = torch.ones_like(pack.sequence_ids)
        return TokenLogprobs(scores, 0 * ones, ones, pack.sequence_ids)

    def values(self, seen: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics of a reward trainer."""
        method = self.setting.spec.method
        assert isinstance(method, Reward)
        margin = batch.columns["margin"][seen.sequence_ids[::2] // 2] if "margin" in batch.columns else None
        found = losses.reward(seen.logps[::2], seen.logps[1::2], margin=margin, centering=method.centering)
        gap = found.chosen_rewards - found.rejected_rewards
        return {
            "loss": found.losses,
            "accuracy": losses.accuracy(gap),
            "margin": gap,
            "mean_reward": (found.chosen_rewards + found.rejected_rewards) / 2,
        }


def _unpadded(answer: list[int], padding: int) -> list[int]:
    """Without the padding tokens at its end; its first token stays."""
    end = next((place for place in range(len(answer), 1, -1) if answer[place - 1] != padding), 1)
    return answer[:end]
