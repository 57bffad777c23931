"""Methods that learn to say a given text: the assistant's tokens of conversations, or every token of plain text."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ..engine.logprobs import TokenLogprobs
from ..engine.packing import ScoredSequence
from ..evaluation.intervals import Scores
from ..training import GlobalBatch, LabTrainer
from ..training.context import TrainContext

Row = dict[str, Any]


def trainer(setting: TrainContext) -> SupervisedTrainer:
    """Cross-entropy on the labels."""
    return SupervisedTrainer(setting, setting.train, setting.scored)


def sequences(row: Row) -> list[ScoredSequence]:
    """A conversation with its labels, or the documents of a block, each by itself."""
    if "seq_lengths" not in row:
        return [ScoredSequence([], row["input_ids"], row["labels"])]
    ends = [0, *accumulate(row["seq_lengths"])]
    return [ScoredSequence([], row["input_ids"][start:end]) for start, end in pairwise(ends)]


class SupervisedTrainer(LabTrainer):
    """The loss is a mean over the tokens of a global batch, not over its rows: a long answer weighs more, as in every library."""

    wants = {"is_argmax": True}

    def sequences(self, row: Row) -> list[ScoredSequence]:
        """One or several."""
        return sequences(row)

    def columns(self, rows: list[Row]) -> dict[str, Tensor]:
        """How many tokens of each row are predicted: no text's first one is."""
        return {"tokens": torch.tensor([sum(len(one.scored()) for one in sequences(row)) for row in rows])}

    def values(self, seen: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics."""
        assert seen.is_argmax is not None
        nll = -seen.logps * (
            batch.rows / batch.columns["tokens"].sum()
        )  # summed over tokens, divided by rows: the mean over tokens
        return {"loss": nll, "mean_token_accuracy": seen.is_argmax}

    def heldout_scores(self, *, initial: bool = False) -> dict[str, Scores]:
        """Negative log-probability and accuracy per token; a conversation, or a document, is one of the sample."""
        if not self.heldout:
            return {}
        seen, _ = self.heldout_seen()
        assert seen.is_argmax is not None
        tokens = seen.lengths.double().tolist()
        right = seen.sum_by_sequence(seen.is_argmax.float())
        return {
            "eval_loss": Scores((-seen.sum_by_sequence(seen.logps)).tolist(), tokens),
            "eval_mean_token_accuracy": Scores(right.tolist(), tokens),
        }
