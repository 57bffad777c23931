"""Generates batch by batch, token by token; rows that have finished leave their batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...distributed import collectives, ranks
from ...distributed.full_state import is_sharded
from ...runtime.progress import Progress
from ..logprobs import evaluation_mode
from .choice import DecoderClass, choose_decoder
from .planning import Budget, Share, plan_batches
from .sampling import Completion, Sampling, choose_tokens, uniform_draws

MAX_ROWS = 256


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    max_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = iter,
    max_rows: int = MAX_ROWS,
) -> list[list[Completion]]:
    """`sampling.n` answers to each prompt, in the prompts' order.

    An answer ends with a token of `stop_ids`, or after `max_new_tokens`. At most `max_tokens` tokens, prompts
    and answers together, and `max_rows` answers are in a batch. The model decides alone: what a
    generation_config.json adds, such as a repetition penalty, has no part in it. Of several processes each
    generates its share and gets every answer: all must call this together. Inside of peft's `disable_adapter`
    the answers are those of the model without it. `progress` goes through the steps of decoding; a step is a
    token for each row of a batch.
    """
    if not prompts:
        return []
    assert all(prompts), "an empty prompt predicts nothing"
    distinct = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
    sampled = sampling if sampling.temperature else replace(sampling, n=1)
    longest = max(map(len, distinct)) + sampling.max_new_tokens
    with evaluation_mode(model, dtype):
        way = choose_decoder(model, distinct, longest, device, dtype)
        budget = Budget(max_tokens, max_rows, sampling.max_new_tokens, way.shares_prompts)
        batches = plan_batches([len(prompt) for prompt in distinct], sampled.n, budget, ranks.world_size())
        run = _Run(model, way, distinct, sampled, set(stop_ids), device, batches)
        for _ in progress(run):
            pass
    completions: dict[tuple[int, int], Completion] = {}
    for part in collectives.all_gather(run.completions):
        completions |= part
    repeats = sampling.n // sampled.n
    answers = {
        tuple(prompt): [completions[index, answer] for answer in range(sampled.n)] * repeats
        for index, prompt in enumerate(distinct)
    }
    return [list(answers[tuple(prompt)]) for prompt in prompts]


@dataclass(frozen=True)
class _Row:
    """An answer that is being generated."""

    prompt: int
    answer: int
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


@dataclass
class _Run(Sequence[None]):
    """The steps of decoding this process's batches: as many as any other process has.

    A batch that ends early goes through the steps that it did not need at once.
    """

    model: Any
    way: DecoderClass
    prompts: Sequence[list[int]]
    sampling: Sampling
    stop_ids: set[int]
    device: torch.device
    batches: list[list[Share]]
    completions: dict[tuple[int, int], Completion] = field(default_factory=dict)  # (prompt, answer)
    num_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(ranks.split_between_processes(self.batches)) * self.sampling.max_new_tokens

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("steps are gone through in order")

    @property
    def note(self) -> str:
        """How fast tokens come, for the progress bar."""
        rate = self.num_tokens / max(time.monotonic() - self.started, 1e-9)
        return f"{rate:.0f} tokens/s" + (" in each process" if ranks.world_size() > 1 else "")

    def __iter__(self) -> Iterator[None]:
        in_step = is_sharded(self.model) and ranks.world_size() > 1
        self.started = time.monotonic()
        for batch, is_own in ranks.split_between_processes(self.batches):
            rows = [_Row(share.prompt, answer) for share in batch for answer in share.answers]
            steps = 0
            if (
                is_own or in_step
            ):  # without rows of its own, a process takes part in the others' forward calls
                for _ in self._decode(rows if is_own else rows[:1], is_own, in_step):
                    steps += 1
                    yield
            for _ in range(steps, self.sampling.max_new_tokens):
                yield

    def _decode(self, rows: list[_Row], counts: bool, in_step: bool) -> Iterator[None]:
        """Generate the answers of a batch, and keep them if it `counts`; yields after each step.

        With `in_step` it goes on, for nothing, until every process is done: under sharding each of the
        processes must make the same forward calls.
        """
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        decoder = self.way(self.model, [self.prompts[prompt] for prompt in prompts], self.device)
        draws = self._draws(rows)
        logits = decoder.start([prompts.index(row.prompt) for row in rows])
        for step in range(1, self.sampling.max_new_tokens + 1):
            tokens, logps = choose_tokens(logits, self.sampling, draws[:, step - 1])
            is_last = step == self.sampling.max_new_tokens
            going_on = self._extend(rows, tokens.tolist(), logps.tolist(), counts, is_last)
            counts = counts and bool(going_on)
            yield
            if is_last or not (collectives.any_process(counts) if in_step else counts):
                return
            going_on = going_on or [0]
            if len(going_on) < len(rows):
                decoder.keep(going_on)
                rows = [rows[index] for index in going_on]
                tokens, draws = tokens[going_on], draws[going_on]
            logits = decoder.step(tokens)

    def _extend(
        self, rows: Sequence[_Row], tokens: Sequence[int], logps: Sequence[float], counts: bool, is_last: bool
    ) -> list[int]:
        """Give each row its next token, and keep those that end; the indices of those that go on."""
        stopped = [token in self.stop_ids for token in tokens]
        if counts:
            self.num_tokens += len(rows)
            for row, token, logp, is_stopped in zip(rows, tokens, logps, stopped, strict=True):
                row.token_ids.append(token)
                row.logps.append(logp)
                if is_stopped or is_last:
                    self.completions[row.prompt, row.answer] = Completion(
                        row.token_ids, row.logps, is_stopped
                    )
        return [index for index, is_stopped in enumerate(stopped) if not is_stopped]

    def _draws(self, rows: Sequence[_Row]) -> Tensor:
        """[rows, max_new_tokens]; zeros for greedy answers, which have no use for them."""
        if not self.sampling.temperature:
            return torch.zeros(1, 1, device=self.device).expand(len(rows), self.sampling.max_new_tokens)
        draws = [uniform_draws(self.prompts[row.prompt], self.sampling, row.answer) for row in rows]
        return torch.from_numpy(np.stack(draws)).to(self.device)
