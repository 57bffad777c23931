"""A reward model: a score of each answer, from a head on its last token, trained on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import Reward
from ..data import Chained, Row
from ..engine.layout import ForwardBatch
from ..engine.logprobs import TokenLogprobs, sequence_scores
from ..engine.packing import ScoredSequence, without_padding
from ..losses import bradley_terry, pair_accuracy
from ..training import Objective, TrainContext
from ..training.batch import GlobalBatch
from .preference import pair_sequences


class RewardObjective(Objective):
    """Pairs go through the engine as everywhere else; the `score` head takes the place of the LM head."""

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        assert isinstance(context.spec.method, Reward)
        self.method = context.spec.method
        # whoever loads it needs it
        context.model.config.get_text_config().pad_token_id = context.tokenizer.pad_token_id
        rows = Chained([context.train_rows, context.scored_rows])
        without = sum("margin" not in row for row in rows)
        if 0 < without < len(rows):
            context.notify(f"margin: {without} of {len(rows)} rows have none; theirs is 0")

    def score_inputs(self, row: Row) -> list[ScoredSequence]:
        """Chosen, then rejected, up to the token that transformers' own forward scores: the last that is not
        padding.

        Where a tokenizer pads with its end of text, as many do, that is the token before the end.
        """
        padding = self.context.tokenizer.pad_token_id
        return [replace(pair, answer=without_padding(pair.answer, padding)) for pair in pair_sequences(row)]

    def batch_columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """How much better the chosen answer is; 0 where the row does not say."""
        return {"margin": torch.tensor([float(row.get("margin", 0.0)) for row in rows])}

    def forward(self, model: torch.nn.Module, batch: ForwardBatch) -> TokenLogprobs:
        """One score per sequence, in place of its log-probabilities."""
        scores = sequence_scores(model, batch)
        ones = torch.ones_like(batch.sequence_ids)
        return TokenLogprobs(scores, 0 * ones, ones, batch.sequence_ids)

    def loss_and_metrics(self, outputs: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics of a reward trainer."""
        margin = batch.columns["margin"][outputs.sequence_ids[::2] // 2]
        chosen, rejected = outputs.logps[::2], outputs.logps[1::2]
        pair_loss = bradley_terry(chosen, rejected, margin=margin, centering=self.method.centering)
        gap = pair_loss.chosen_rewards - pair_loss.rejected_rewards
        return {
            "loss": pair_loss.losses,
            "accuracy": pair_accuracy(gap),
            "margin": gap,
            "mean_reward": (pair_loss.chosen_rewards + pair_loss.rejected_rewards) / 2,
        }
