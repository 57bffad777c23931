"""Methods that learn a given text: the assistant's tokens of conversations, or every token of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..data import Row
from ..engine.logprobs import TokenLogprobs, score_without_grad
from ..engine.packing import ScoredSequence
from ..evaluation.intervals import Scores
from ..evaluation.prompts import content_digest, prompt_digest
from ..training import Objective
from ..training.batch import GlobalBatch
from .implicit_rewards import implicit_rewards
from .preference import pair_sequences


class SupervisedObjective(Objective):
    """Cross-entropy as a mean over the tokens of a global batch, not over its rows: a long answer weighs
    more.
    """

    logprob_options = {"is_argmax": True}
    initial_sums: Tensor | None = None  # of the held-out pairs' answers, [2P] nats

    def score_inputs(self, row: Row) -> list[ScoredSequence]:
        """A conversation with its labels, or the documents of a block, each by itself."""
        if "seq_lengths" not in row:
            return [ScoredSequence([], row["input_ids"], row["labels"])]
        ends = [0, *accumulate(row["seq_lengths"])]
        return [ScoredSequence([], row["input_ids"][start:end]) for start, end in pairwise(ends)]

    def batch_columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """How many tokens of each row are predicted: a text's first one is not."""
        counts = [sum(len(sequence.scored_tokens()) for sequence in self.score_inputs(row)) for row in rows]
        return {"tokens": torch.tensor(counts)}

    def loss_and_metrics(self, outputs: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """TRL's metrics, one value per token."""
        assert outputs.is_argmax is not None
        # summed over tokens, divided by rows
        nll = -outputs.logps * (batch.num_rows / batch.columns["tokens"].sum())
        return {"loss": nll, "mean_token_accuracy": outputs.is_argmax}

    def heldout_scores(
        self, outputs: TokenLogprobs, batch: GlobalBatch, rows: Sequence[Row]
    ) -> dict[str, Scores]:
        """Negative log-probability and accuracy per token; a conversation, or a document, is one of the
        sample.
        """
        assert outputs.is_argmax is not None
        tokens = outputs.lengths.double().tolist()
        nll = -outputs.sum_by_sequence(outputs.logps)
        correct = outputs.sum_by_sequence(outputs.is_argmax.float())
        asked = [prompt for row in rows for prompt in self._prompts(row)]
        prompts = [asked[sequence] for sequence in outputs.sequence_ids.tolist()]
        return {
            "loss": Scores(nll.tolist(), tokens, prompts=prompts),
            "mean_token_accuracy": Scores(correct.tolist(), tokens, share=True, prompts=prompts),
        }

    def _prompts(self, row: Row) -> list[str]:
        """The prompt of each sequence of a row; a document stands for itself."""
        if "seq_lengths" not in row:
            return [prompt_digest(row)]
        return [content_digest(document.answer) for document in self.score_inputs(row)]

    def pair_scores(self, *, initial: bool) -> dict[str, Scores]:
        """The implicit rewards, as methods on pairs have them: training sees the chosen answers alone."""
        pairs = self.context.scored_pairs
        if not pairs:
            return {}
        sequences = [sequence for row in pairs for sequence in pair_sequences(row)]
        logps = score_without_grad(self.context.model, sequences, self.context.engine)
        sums = torch.tensor([float(tokens.double().sum()) for tokens in logps], dtype=torch.float64)
        if initial:
            self.initial_sums = sums
        if self.initial_sums is None:
            return {}
        gains = sums - self.initial_sums
        return self.as_scores(implicit_rewards(gains[::2], gains[1::2], paired=True), pairs)
