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
    generates its share and gets every answer: all must call this together. `progress` goes through the steps
    of decoding; a step is a token for each row of a batch.
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
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(ranks.split_between_processes(self.batches)) * self.sampling.max_new_tokens

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("steps are gone through in order")

    @property
    def note(self) -> str:
        """How fast tokens come, for the progress bar."""
        rate = self.tokens / max(time.monotonic() - self.started, 1e-9)
        return f"{rate:.0f} tokens/s" + (" in each process" if ranks.world_size() > 1 else "")

    def __iter__(self) -> Iterator[None]:
        in_step = is_sharded(self.model) and ranks.world_size() > 1
        self.started = time.monotonic()
        for batch, is_own in ranks.split_between_processes(self.batches):
            steps = 0
            rows = [(share.prompt, answer) for share in batch for answer in share.answers]
            if is_own:
                for _ in self._decode(rows, in_step):
                    steps += 1
                    yield
            elif in_step:  # takes part in the others' forward calls
                for _ in self._decode(rows[:1], in_step, is_own=False):
                    steps += 1
                    yield
            for _ in range(steps, self.sampling.max_new_tokens):
                yield

    def _decode(self, rows: list[tuple[int, int]], in_step: bool, *, is_own: bool = True) -> Iterator[None]:
        """Generate the answers of a batch; yields after each step.

        With `in_step` it goes on, and counts nothing, until every process is done: under sharding each of the
        processes must make the same forward calls.
        """
        prompts = list(dict.fromkeys(prompt for prompt, _ in rows))
        decoder = self.way(self.model, [self.prompts[prompt] for prompt in prompts], self.device)
        draws = self._draws(rows)
        ids: list[list[int]] = [[] for _ in rows]
        logps: list[list[float]] = [[] for _ in rows]
        active = list(range(len(rows)))  # the rows that are in the batch
        done = not is_own
        logits = decoder.start([prompts.index(prompt) for prompt, _ in rows])
        for step in range(self.sampling.max_new_tokens):
            is_last = step + 1 == self.sampling.max_new_tokens
            tokens, scores = choose_tokens(logits, self.sampling, draws[active, step])
            stopped = [token in self.stop_ids for token in tokens.tolist()]
            if not done:
                self.tokens += len(active)
                for row, token, score in zip(active, tokens.tolist(), scores.tolist(), strict=True):
                    ids[row].append(token)
                    logps[row].append(score)
                self._record(rows, active, stopped, ids, logps, last=is_last)
            kept = [index for index, is_stopped in enumerate(stopped) if not is_stopped]
            done = done or not kept
            yield
            if is_last:
                return
            if in_step:
                if not collectives.any_process(not done):
                    return
                kept = kept or [0]
            elif done:
                return
            if len(kept) < len(active):
                decoder.keep(kept)
                active = [active[index] for index in kept]
                tokens = tokens[kept]
            logits = decoder.step(tokens)

    def _draws(self, rows: Sequence[tuple[int, int]]) -> Tensor:
        """[rows, max_new_tokens]; zeros for greedy answers, which have no use for them."""
        if not self.sampling.temperature:
            return torch.zeros(len(rows), self.sampling.max_new_tokens, device=self.device)
        draws = [uniform_draws(self.prompts[prompt], self.sampling, answer) for prompt, answer in rows]
        return torch.from_numpy(np.stack(draws)).to(self.device)

    def _record(
        self,
        rows: Sequence[tuple[int, int]],
        active: Sequence[int],
        stopped: Sequence[bool],
        ids: Sequence[list[int]],
        logps: Sequence[list[float]],
        *,
        last: bool,
    ) -> None:
        """Keep the answers that ended with this step."""
        for row, is_stopped in zip(active, stopped, strict=True):
            if is_stopped or last:
                self.completions[rows[row]] = Completion(ids[row], logps[row], is_stopped)
