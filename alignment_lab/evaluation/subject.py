"""A model that is measured: loaded, with its tokenizer, the engine that scores with it, and its reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import estimate
from ..config import Experiment
from ..models.tokenizer import load_tokenizer
from ..runtime.errors import UserError
from ..runtime.files import json_digest
from .candidates import Candidate, find_candidate

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..engine.layout import Engine


@dataclass(frozen=True)
class Subject:
    """One loaded model, in evaluation mode, on its device."""

    candidate: Candidate
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    device: torch.device
    dtype: torch.dtype
    max_tokens: int  # of a forward pass
    digest: str  # of the weights and settings that it computes with
    longest: int  # tokens up to which its engine was proved exact
    given_reference: Candidate | None = None  # of eval.reference

    @property
    def name(self) -> str:
        """As it was typed."""
        return self.candidate.name

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores answers, and writes none."""
        return self.candidate.is_reward_model

    @property
    def reference_name(self) -> str | None:
        """What its reference is, in words; None where it has none."""
        if self.given_reference:
            return self.given_reference.name
        if self.candidate.is_initial:
            return self.name
        if self.candidate.starts_with_base:
            return "the base, with the adapter off"
        return self.candidate.start.name if self.candidate.start else None

    @contextmanager
    def reference(self, console: Console) -> Iterator[Subject]:
        """Its reference inside the block: the initial policy of its run, the base with the adapter off, or
        the model of eval.reference. Another model is loaded for the block alone.

        Raises UserError where it has none, or one of another vocabulary.
        """
        start = self.given_reference or self.candidate.start
        if not self.given_reference and self.candidate.is_initial:
            yield self
            return
        if not self.given_reference and self.candidate.starts_with_base:
            with self.model.disable_adapter():
                yield replace(self, digest=json_digest([self.digest, "without the adapter"]))
            return
        if start is None:
            raise UserError(
                f"{self.name}: has no reference here to be measured from; name one with eval.reference=MODEL."
            )
        loaded = load_subject(start, self.longest, console)
        if loaded.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"eval.reference: {start.name} has another vocabulary than {self.name}, so that their "
                "log-probabilities are of other tokens; give a model with the same tokenizer."
            )
        try:
            yield loaded
        finally:
            free(loaded)


def load_subject(
    candidate: Candidate, longest: int, console: Console, given_reference: Candidate | None = None
) -> Subject:
    """Load one model to score sequences of up to `longest` tokens. Imports torch.

    Raises UserError where it cannot be loaded.
    """
    from ..engine.choice import choose_engine
    from ..engine.reference import weights_digest
    from ..models.device import device_and_dtype, free_memory
    from ..models.loading import load_policy

    spec = with_kind_of_model(candidate)
    device, dtype = device_and_dtype(spec)
    tokenizer = load_tokenizer(spec.model, candidate.tokenizer_folder)
    model = load_policy(spec, candidate.base, device, dtype).eval().requires_grad_(False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    passes = estimate.choose_micro_batch(
        spec,
        model.config.get_text_config(),
        dtype_bytes=dtype.itemsize,
        free_bytes=free_memory(device),
        longest_row=longest,
        cuda=device.type == "cuda",
        processes=1,
    )
    digest = weights_digest(model)
    engine, reason = choose_engine(model, longest, passes.tokens, device, dtype, weights=digest)
    if reason:
        console.print(f"{candidate.name}: not packed: {reason}", highlight=False, soft_wrap=True)
    return Subject(
        candidate, model, tokenizer, engine, device, dtype, passes.tokens, digest, longest, given_reference
    )


def with_kind_of_model(candidate: Candidate) -> Experiment:
    """The candidate's experiment with a method that reads its weights: a language model's, or a reward
    model's.
    """
    from ..config import METHOD_SCHEMAS

    spec = candidate.spec
    if spec.method.generates is not candidate.is_reward_model:
        return spec
    return replace(spec, method=METHOD_SCHEMAS["reward" if candidate.is_reward_model else "dpo"]())


def free(subject: Subject) -> None:
    """Give the memory of a subject's weights back; it computes nothing after that."""
    import gc

    import torch

    for weight in subject.model.parameters():  # whoever still holds the model holds its modules alone
        weight.data = torch.empty(0, dtype=weight.dtype)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def given_reference(spec: Experiment) -> Candidate | None:
    """The model of eval.reference; raises UserError where there is none, or it is a reward model."""
    if spec.eval.reference is None:
        return None
    found = find_candidate(spec, spec.eval.reference, "eval.reference")
    if found.is_reward_model:
        raise UserError(
            f"eval.reference={spec.eval.reference}: a reward model has no log-probabilities of answers; give "
            "a language model."
        )
    return found
