"""Compares what a layout computes for random sequences with plain transformers' answer for each alone.

Plain means: the model called with one sequence, without mask, positions or layout, and all of its logits.
Refuses to know why a model differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..distributed import collectives
from ..estimate.oom import is_out_of_memory
from ..models.fused.patch import stock_forwards
from ..models.packed_attention import SHARED_PREFIX
from ..runtime.errors import UserError
from .layout import Engine
from .logprobs import evaluation_mode, sequence_scores, token_logprobs, without_unknown
from .packing import IGNORE_INDEX, ScoredSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3  # nats between two computations of a log-probability in float32, at most
# in the median where 16 bits take part: their rounding sends a token here and there to another expert
TOLERANCE_16_BIT = 0.15
SHORT = 3  # short sequences
SCORED = 64  # tokens of the long sequence that are compared: its last ones, which see all others
LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {"packed": True},
    "padded": {"packed": False},
    "one by one": {"packed": False, "one_by_one": True},
}
# how a model's code answers to a layout that it was not written for; kernels that fail are a RunError
REFUSALS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)


class ExactnessCheck:
    """Scores random sequences of up to `longest` tokens, each alone, and compares layouts with that.

    `plain_attention` is the one that a packed model has without the lab; None: the model is not packed. With
    all weights in float32 the function is checked in float32 with short sequences, then the kernels of
    `dtype` with a long one. Every process makes the same calls; rank 0's verdict holds. Raises UserError
    where plain transformers cannot compute the sequences, or where a token sees later ones.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        longest: int,
        device: torch.device | None,
        dtype: torch.dtype,
        plain_attention: str | None,
    ) -> None:
        self.model, self.device, self.plain_attention = model, device or model.device, plain_attention
        self.is_reward = not model.can_generate() and any(
            hasattr(module, "score") and hasattr(module, "config") for module in model.modules()
        )
        short, long = _random_sequences(model, max(2, longest))
        # in 16 bits, or in 8 or 4: products of quantized weights round otherwise from mode to mode
        weights_rounded = any(weight.dtype.itemsize < 4 for weight in model.parameters())
        is_exact = dtype is torch.float32 and not weights_rounded
        self.stages = [([long, *short], dtype, is_exact)]
        if not is_exact and not weights_rounded:
            self.stages.insert(0, (short, torch.float32, True))
        with self._plain_attention():
            try:
                self.alone = [self._score_alone(sequences, dtype) for sequences, dtype, _ in self.stages]
                sees_ahead = not self.is_reward and self._sees_ahead(short)
            except REFUSALS as error:
                raise_failure(error)
                raise UserError(
                    f"model.path: {type(model).__name__} does not compute a plain row of {longest} tokens "
                    f"({first_words(error)}); use another model, or a lower data.max_length."
                ) from error
        if sees_ahead:
            raise UserError(
                f"model.path: in {type(model).__name__} a token sees later ones, so that its log-probability "
                "would know the answer; use a causal model (where a family has both, its config.json says "
                "is_decoder=true)."
            )

    def problem(self, layout: str) -> str | None:
        """Why this layout does not give what each sequence gives alone; None where it does."""
        problem = None
        for (sequences, dtype, is_exact), alone in zip(self.stages, self.alone, strict=True):
            try:
                with evaluation_mode(self.model, dtype):
                    outputs = self._score(sequences, layout)
            except REFUSALS as error:
                raise_failure(error)
                problem = f"its forward pass refuses {layout} rows ({first_words(error)})"
                break
            difference, tolerance = difference_between(outputs, alone, is_exact)
            if difference > tolerance:
                problem = (
                    f"{layout} log-probabilities differ by {difference:.2g} from those of each sequence alone"
                )
                break
        return collectives.broadcast(problem)

    def require_exact_one_by_one(self) -> None:
        """Raise UserError where even one sequence at a time is not what it is alone."""
        if problem := self.problem("one by one"):
            raise UserError(
                f"model.path: {type(self.model).__name__} cannot be trained here: computed {problem}; "
                "use another model."
            )

    def require_same_in_training(self, layout: str) -> None:
        """Raise UserError where the short sequences do not score in training mode as they do alone."""
        sequences, dtype, is_exact = self.stages[0]
        short, alone = sequences[-SHORT:], self.alone[0][-SHORT:]
        with evaluation_mode(self.model, dtype):
            self.model.train()  # `evaluation_mode` restores what was before
            try:
                outputs = self._score(short, layout)
            except REFUSALS as error:
                raise_failure(error)
                raise UserError(
                    f"model.path: {type(self.model).__name__} does not compute {layout} rows in training "
                    f"mode ({first_words(error)}); set the rates of dropout in its config.json to 0, or use "
                    "another model."
                ) from error
        difference, tolerance = collectives.broadcast(difference_between(outputs, alone, is_exact))
        if difference > tolerance:
            raise UserError(
                f"model.path: {type(self.model).__name__} gives other log-probabilities in training mode, "
                f"by {difference:.2g} nats: its code adds dropout or noise that cannot be switched off from "
                "outside; set their rates in its config.json to 0, or use another model."
            )

    def _score(self, sequences: Sequence[ScoredSequence], layout: str) -> list[Tensor]:
        """Each sequence's log-probabilities, or a reward model's score, in this layout: all in one pass."""
        engine = Engine(max_tokens=len(sequences) * max(map(len, sequences)), **LAYOUTS[layout])
        (batch,) = [batch.to(self.device) for batch in engine.batches(sequences)]
        if self.is_reward:
            return list(sequence_scores(self.model, batch).float().cpu().split(1))
        outputs = token_logprobs(self.model, batch)
        return list(outputs.logps.float().cpu().split(outputs.lengths.tolist()))

    def _score_alone(self, sequences: Sequence[ScoredSequence], dtype: torch.dtype) -> list[Tensor]:
        """The same by plain transformers.

        In the reverse order: what a call leaves behind must not matter.
        """
        with evaluation_mode(self.model, dtype):
            scores = [self._call_plain(sequence) for sequence in reversed(sequences)]
        return scores[::-1]

    def _call_plain(self, sequence: ScoredSequence) -> Tensor:
        logits = self._plain_logits(sequence)
        if self.is_reward:
            return logits.float().cpu()
        scored = sequence.scored_tokens()
        positions, targets = [position - 1 for position, _ in scored], [token for _, token in scored]
        logps = logits[positions].float().cpu().log_softmax(-1)
        return logps[torch.arange(len(targets)), targets]

    def _plain_logits(self, sequence: ScoredSequence) -> Tensor:
        """All logits of one sequence, [T, V]; of a reward model its score, [1]."""
        ids = torch.tensor([sequence.prompt + sequence.answer], device=self.device)
        keywords: dict[str, Any] = without_unknown(self.model, {"use_cache": False}, ["use_cache"])
        logits: Tensor = self.model(input_ids=ids, **keywords).logits[0]
        return logits

    def _sees_ahead(self, short: Sequence[ScoredSequence]) -> bool:
        """Whether the logits of a prompt depend on the answer that follows it."""
        first, second = short[:2]
        _, dtype, is_exact = self.stages[0]
        with evaluation_mode(self.model, dtype):
            one, other = (
                self._plain_logits(sequence)[: len(sequence.prompt)].float().cpu().log_softmax(-1)
                for sequence in (first, second)
            )
        difference, tolerance = difference_between([one], [other], is_exact)
        return collectives.broadcast(difference > tolerance)

    @contextmanager
    def _plain_attention(self) -> Iterator[None]:
        if self.plain_attention:
            self.model.set_attn_implementation(self.plain_attention)
        with stock_forwards(self.model):
            yield
        if self.plain_attention:
            self.model.set_attn_implementation(SHARED_PREFIX)


def _random_sequences(model: PreTrainedModel, longest: int) -> tuple[list[ScoredSequence], ScoredSequence]:
    """Two answers of one length to a prompt, and a tree beside; an answer to that prompt up to `longest`."""
    config = model.config.get_text_config()
    padding = getattr(config, "pad_token_id", None)  # some families look for it in a row
    vocabulary = [token for token in range(min(1000, config.vocab_size)) if token != padding]
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        indices = torch.randint(len(vocabulary), (count,), generator=generator)
        return [vocabulary[index] for index in indices.tolist()]

    prompt = draw(min(8, longest // 2))
    short = [ScoredSequence(prompt, draw(min(5, longest - len(prompt)))) for _ in range(2)]
    short += [ScoredSequence(prompt[:1], draw(min(9, longest - 1)))]
    answer = draw(longest - len(prompt))
    unscored = len(prompt) + max(0, len(answer) - SCORED)
    labels = [IGNORE_INDEX] * unscored + answer[max(0, len(answer) - SCORED) :]
    return short, ScoredSequence(prompt, answer, labels)


def difference_between(
    outputs: Sequence[Tensor], expected: Sequence[Tensor], is_exact: bool
) -> tuple[float, float]:
    """By how much two scorings of the same sequences differ, and by how much they may.

    Weights that give no finite number give none in either.
    """
    differences = [
        torch.where(one.isfinite() | other.isfinite(), (one - other).abs(), 0.0).flatten()
        for one, other in zip(outputs, expected, strict=True)
    ]
    if is_exact:
        return float(torch.cat(differences).max()), TOLERANCE
    # the long sequence by itself: the short ones alone would never show what goes wrong at its length
    first, *others = differences
    medians = [first.median(), torch.cat(others).median()] if others else [first.median()]
    return float(torch.stack(medians).max()), TOLERANCE_16_BIT


def raise_failure(error: BaseException) -> None:
    """Raise the error again where it says nothing of the model's code: memory, or the accelerator."""
    if is_out_of_memory(error) or isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        raise error


def first_words(error: BaseException) -> str:
    """The error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]
