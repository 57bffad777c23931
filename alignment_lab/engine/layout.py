"""The log-probability engine: a causal model and token ids in, log p(token | all before it) out.

Every method and every evaluation asks here. Sequences are packed into trees (see attention.py) where the model allows it exactly, and
right-padded where not; the head runs only where a scored token is predicted. Knows no objective and no row of data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..distributed import ranks
from ..models.packed_attention import PackedLayout, dummy_mask
from .packing import ScoredSequence, Tree, build_trees, pack_evenly, pack_trees, pad_trees


@dataclass(frozen=True)
class ForwardBatch:
    """N sequences laid out for one forward pass; S of their tokens are scored, sequence by sequence."""

    input_ids: Tensor  # [1, T] packed, [N, T] padded
    position_ids: Tensor  # of the same shape
    layout: PackedLayout | None  # None: padded
    predict_at: Tensor  # [S] where the token is predicted, in the flattened input
    targets: Tensor  # [S] the token
    offsets: Tensor  # [S] its place in the answer; below 0 in the prompt
    lengths: Tensor  # [N] scored tokens of each sequence
    last_positions: Tensor  # [N] each sequence's last token, in the flattened input
    sequence_ids: Tensor  # [N] which of the planned sequences they are, rising
    is_filler: bool = False  # done again by a process that has no pack of its own left: it counts for nothing

    def to(self, device: torch.device | str, **_: Any) -> ForwardBatch:
        """The same on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def inputs(self) -> dict[str, Any]:
        """What a model's forward is given."""
        given: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.layout is None:
            return given
        return {
            **given,
            "position_ids": self.position_ids,
            "attention_mask": dummy_mask(self.input_ids.device),
            "layout": self.layout,
        }


@dataclass(frozen=True)
class Engine:
    """How sequences are laid out for one model: packed or padded, at most `budget` tokens a forward pass."""

    packed: bool
    max_tokens: int
    world_size: int = 1  # processes that share the work
    device: torch.device | None = None  # where it is done; None: where the model's first weight lies

    def batches(self, sequences: Sequence[ScoredSequence]) -> list[ForwardBatch]:
        """All sequences, in as few forward passes as the budget allows; those with one prompt go together."""
        return [self._laid_out(sequences, pack) for pack in self._plan(sequences)]

    def local_batches(self, sequences: Sequence[ScoredSequence]) -> list[ForwardBatch]:
        """This process's forward passes: as many as any other's, so that the last may be a spare one."""
        shares = ranks.split_between_processes(self._plan(sequences))
        return [replace(self._laid_out(sequences, pack), is_filler=not counts) for pack, counts in shares]

    def _plan(self, sequences: Sequence[ScoredSequence]) -> list[list[Tree]]:
        planned = build_trees(sequences)
        if not planned:
            return []
        if self.world_size == 1:
            return pack_trees(planned, self.max_tokens) if self.packed else pad_trees(planned, self.max_tokens)
        if self.packed:
            return pack_evenly(planned, self.max_tokens, self.world_size)
        width = sum(tree.longest * len(tree.sequence_ids) for tree in planned)
        return pad_trees(planned, min(self.max_tokens, -(-width // self.world_size)))

    def _laid_out(self, sequences: Sequence[ScoredSequence], pack: Sequence[Tree]) -> ForwardBatch:
        return _pack(sequences, pack) if self.packed else _pad(sequences, pack)


def _pack(sequences: Sequence[ScoredSequence], pack: Sequence[Tree]) -> ForwardBatch:
    """Trees behind each other; positions of every answer start behind its prompt."""
    ids: list[int] = []
    positions: list[int] = []
    starts: dict[int, tuple[int, int]] = {}  # member -> where its prompt and its answer start
    for tree in pack:
        prompt = len(ids)
        ids += sequences[tree.sequence_ids[0]].prompt
        positions += range(tree.prompt)
        for member in tree.sequence_ids:
            starts[member] = prompt, len(ids)
            ids += sequences[member].answer
            positions += range(tree.prompt, len(sequences[member]))
    layout = PackedLayout(
        tuple((tree.prompt, tuple(len(sequences[member].answer) for member in tree.sequence_ids)) for tree in pack)
    )
    return _batch(sequences, [ids], [positions], layout, starts)


def _pad(sequences: Sequence[ScoredSequence], pack: Sequence[Tree]) -> ForwardBatch:
    """Right-padded: under causal attention no real token sees the padding, so any id will do and no mask is needed."""
    members = sorted(member for tree in pack for member in tree.sequence_ids)
    width = max(len(sequences[member]) for member in members)
    rows = [(sequences[member].prompt + sequences[member].answer + [0] * width)[:width] for member in members]
    starts = {
        member: (row * width, row * width + len(sequences[member].prompt))
        for row, member in enumerate(members)
    }
    return _batch(sequences, rows, [list(range(width))] * len(rows), None, starts)


def _batch(
    sequences: Sequence[ScoredSequence],
    ids: list[list[int]],
    positions: list[list[int]],
    layout: PackedLayout | None,
    starts: dict[int, tuple[int, int]],
) -> ForwardBatch:
    """What both layouts have in common: which tokens are scored, and where each one is predicted."""
    places: list[int] = []
    targets: list[int] = []
    offsets: list[int] = []
    lengths, ends = [], []
    members = sorted(starts)
    for member in members:
        sequence, (prompt_start, answer_start) = sequences[member], starts[member]
        size = len(sequence.prompt)
        where = [
            *range(prompt_start, prompt_start + size),
            *range(answer_start, answer_start + len(sequence.answer)),
        ]
        scored = sequence.scored()
        places += [where[place - 1] for place, _ in scored]
        targets += [token for _, token in scored]
        offsets += [place - size for place, _ in scored]
        lengths.append(len(scored))
        ends.append(where[-1])
    found: Any = (
        torch.tensor(values, dtype=torch.long)
        for values in (places, targets, offsets, lengths, ends, members)
    )
    return ForwardBatch(torch.tensor(ids), torch.tensor(positions), layout, *found)
