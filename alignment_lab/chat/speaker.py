"""A model that answers: found, loaded, with its own template, and its adapter on its base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..config import Experiment
from ..config.compose import load_experiment
from ..data.rows import Message
from ..data.templates import encode_prompts, stop_token_ids
from ..evaluation.candidates import Candidate, Kind, find_candidate
from ..models.locate import locate_model
from ..models.tokenizer import load_tokenizer
from ..runtime.errors import UserError
from ..runtime.output import silenced_libraries
from ..runtime.paths import CONF
from .settings import MODEL_FIELDS, ChatSettings, CommandLine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Speaker:
    """One loaded model, and what it needs to answer."""

    candidate: Candidate
    model: Any
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    stop_ids: list[int]  # tokens that end its turn

    @property
    def name(self) -> str:
        """As it was typed."""
        return self.candidate.name

    @property
    def description(self) -> str:
        """What it is and how it computes, in a few words."""
        weights = sum(weight.numel() for weight in self.model.parameters())
        kind = {Kind.hub: "of the Hub", Kind.composed: "of conf/model"}.get(self.candidate.kind)
        what = f"a {self.candidate.kind.name}" if kind is None else kind
        adapter = ", an adapter on its base" if self.candidate.is_adapter else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{what}{adapter}; {weights / 1e6:,.0f}M weights in {dtype} on {self.device}"

    @property
    def system(self) -> str | None:
        """The system prompt that all of its run's sampled prompts begin with; None where they have none, or
        several.
        """
        run = self.candidate.run
        prompts = [row["prompt"] for row in run.samples() if row.get("prompt")] if run else []
        systems = {prompt[0]["content"] if prompt[0]["role"] == "system" else None for prompt in prompts}
        return systems.pop() if len(systems) == 1 else None

    def answer(self, messages: list[Message], settings: ChatSettings) -> Iterator[int]:
        """The token ids of its answer to these messages, as they are generated.

        Raises UserError where the template refuses the messages, or they are longer than the model reads.
        """
        from ..engine.generation import Sampling, stream

        (prompt,) = encode_prompts(self.tokenizer, [{"prompt": messages}])
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = settings.max_new_tokens if longest is None else longest - len(prompt)
        if room <= 0:
            raise UserError(
                f"{self.name}: the talk has {len(prompt)} tokens, and the model reads {longest}; "
                "take messages back with /undo, or begin anew with /reset."
            )
        sampling = Sampling(
            min(settings.max_new_tokens, room), settings.temperature, settings.top_p, seed=settings.seed
        )
        return stream(
            self.model,
            prompt,
            sampling,
            stop_ids=self.stop_ids,
            device=self.device,
            dtype=self.dtype,
        )


def load_speakers(words: CommandLine, console: Console | None) -> list[Speaker]:
    """The models of a command line. All are found before the first is loaded; `console` says that they are.

    Raises UserError.
    """
    candidates = _find(words.models, words.overrides)
    for each in candidates:
        if each.is_reward_model:
            raise UserError(
                f"{each.name}: is a reward model, which scores answers and writes none; give a "
                "language model."
            )
    status = console.status("loading") if console else nullcontext()
    with status, silenced_libraries():
        return [_load(each) for each in candidates]


def _find(names: Sequence[str], overrides: Sequence[str]) -> list[Candidate]:
    """The model behind each name: an option of conf/model, or whatever can be evaluated."""
    common = load_experiment(overrides)

    def find(name: str) -> Candidate:
        if Path(name).exists() or not (CONF / "model" / f"{name}.yaml").is_file():
            return _with_fields(find_candidate(common, name, "model"), common, overrides)
        spec = load_experiment([f"model={name}", *overrides])
        folder = locate_model(spec.model)
        return Candidate(name, Kind.composed, spec, folder, folder)

    return [find(name) for name in names]


def _with_fields(candidate: Candidate, given: Experiment, overrides: Sequence[str]) -> Candidate:
    """The candidate with what the command line says of models: a run has settings of its own."""
    keys = [override.partition("=")[0] for override in overrides]
    fields = {field: getattr(given.model, field) for field in MODEL_FIELDS if f"model.{field}" in keys}
    spec = candidate.spec
    return replace(candidate, spec=replace(spec, model=replace(spec.model, **fields)))


def _load(candidate: Candidate) -> Speaker:
    from ..models.device import device_and_dtype
    from ..models.loading import load_model, load_policy

    spec = _as_language_model(candidate)
    device, dtype = device_and_dtype(spec)
    tokenizer = load_tokenizer(spec.model, candidate.tokenizer_folder)
    if candidate.is_adapter:
        model = load_policy(spec, candidate.base, device, dtype)
    else:
        model = load_model(spec.model, candidate.base, dtype=dtype).to(device)
    return Speaker(candidate, model.eval(), tokenizer, device, dtype, stop_token_ids(tokenizer))


def _as_language_model(candidate: Candidate) -> Experiment:
    from ..config import METHOD_SCHEMAS

    spec = candidate.spec
    return spec if spec.method.generates else replace(spec, method=METHOD_SCHEMAS["dpo"]())
