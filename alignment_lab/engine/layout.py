"""Lays sequences out as the tensors of forward passes: packed trees in one row, or right-padded rows.

Knows token ids and positions. Refuses to run a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..distributed import ranks
from ..models.device import move
from ..models.packed_attention import PackedLayout, dummy_mask
from .packing import ScoredSequence, Tree, build_trees, pack_evenly, pack_trees, pad_trees


@dataclass(frozen=True)
class ForwardBatch:
    """N sequences laid out for one forward pass; S of their tokens are scored, sequence by sequence."""

    input_ids: Tensor  # [1, T] packed, [N, T] padded
    position_ids: Tensor  # same shape
    layout: PackedLayout | None  # None: padded
    predict_at: Tensor  # [S] position whose logits predict the token, in the flattened input
    targets: Tensor  # [S] token ids
    offsets: Tensor  # [S] position of the token in the answer; negative in the prompt
    lengths: Tensor  # [N] scored tokens of each sequence
    last_positions: Tensor  # [N] position of each sequence's last token, in the flattened input
    sequence_ids: Tensor  # [N] index of each sequence among the planned ones, ascending
    is_filler: bool = False  # repeated by a process that has no pack of its own left: it counts for nothing
    # forward calls of one row each, as many as any other process makes; 0: all rows in one call
    row_calls: int = 0

    def to(self, device: torch.device | str, **_: Any) -> ForwardBatch:
        """A copy on `device`."""
        tensors: dict[str, Any] = {
            name: move(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def rows(self) -> list[ForwardBatch]:
        """Each padded row as a batch of its own without padding, in order.

        Where other processes have more rows the last one is repeated, and scores nothing.
        """
        width = self.input_ids.shape[1]
        ends = (
            self.last_positions - torch.arange(len(self.lengths), device=self.lengths.device) * width
        ).tolist()
        starts = [0, *self.lengths.cumsum(0).tolist()]
        batches = []
        for index in range(max(self.row_calls, len(ends))):
            row = min(index, len(ends) - 1)
            scored = slice(starts[row], starts[row + 1] if row == index else starts[row])
            batches.append(
                replace(
                    self,
                    input_ids=self.input_ids[row : row + 1, : ends[row] + 1],
                    position_ids=self.position_ids[row : row + 1, : ends[row] + 1],
                    predict_at=self.predict_at[scored] - row * width,
                    targets=self.targets[scored],
                    offsets=self.offsets[scored],
                    lengths=self.lengths[row : row + 1],
                    last_positions=self.last_positions[row : row + 1] - row * width,
                    sequence_ids=self.sequence_ids[row : row + 1],
                    row_calls=0,
                )
            )
        return batches

    def inputs(self) -> dict[str, Any]:
        """Keywords of the model's forward."""
        keywords: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.layout is None:
            return keywords
        return {
            **keywords,
            "position_ids": self.position_ids,
            "attention_mask": dummy_mask(self.input_ids.device),
            "layout": self.layout,
        }


@dataclass(frozen=True)
class Engine:
    """How sequences are laid out for one model: packed or padded, at most `max_tokens` in a forward pass."""

    packed: bool
    max_tokens: int
    world_size: int = 1  # processes that share the work
    device: torch.device | None = None  # where batches go; None: where the model's first weight is
    one_by_one: bool = False  # padded rows are computed one at a time, without their padding

    def batches(self, sequences: Sequence[ScoredSequence]) -> list[ForwardBatch]:
        """All sequences, in as few forward passes as the budget allows.

        Those with one prompt stay together.
        """
        return [
            self._with_row_calls(self._lay_out(sequences, pack), [pack]) for pack in self._plan(sequences)
        ]

    def local_batches(self, sequences: Sequence[ScoredSequence]) -> list[ForwardBatch]:
        """This process's forward passes: as many as any other's, so the last may be a filler."""
        plan = self._plan(sequences)
        rounds = [
            plan[start : start + ranks.world_size()] for start in range(0, len(plan), ranks.world_size())
        ]
        return [
            self._with_row_calls(replace(self._lay_out(sequences, pack), is_filler=not is_own), peers)
            for (pack, is_own), peers in zip(ranks.split_between_processes(plan), rounds, strict=True)
        ]

    def _with_row_calls(self, batch: ForwardBatch, peers: Sequence[Sequence[Tree]]) -> ForwardBatch:
        """The batch; where rows are computed one by one, in as many calls as the round's fullest pack has."""
        if not self.one_by_one:
            return batch
        return replace(batch, row_calls=max(sum(len(tree.sequence_ids) for tree in pack) for pack in peers))

    def _plan(self, sequences: Sequence[ScoredSequence]) -> list[list[Tree]]:
        trees = build_trees(sequences)
        if not trees:
            return []
        if self.world_size == 1:
            return pack_trees(trees, self.max_tokens) if self.packed else pad_trees(trees, self.max_tokens)
        if self.packed:
            return pack_evenly(trees, self.max_tokens, self.world_size)
        padded_tokens = sum(tree.max_length * len(tree.sequence_ids) for tree in trees)
        return pad_trees(trees, min(self.max_tokens, -(-padded_tokens // self.world_size)))

    def _lay_out(self, sequences: Sequence[ScoredSequence], pack: Sequence[Tree]) -> ForwardBatch:
        return _pack(sequences, pack) if self.packed else _pad(sequences, pack)


def _pack(sequences: Sequence[ScoredSequence], pack: Sequence[Tree]) -> ForwardBatch:
    """Trees concatenated in one row; the position ids of every answer continue those of its prompt."""
    ids: list[int] = []
    position_ids: list[int] = []
    starts: dict[int, tuple[int, int]] = {}  # sequence -> start of its prompt, start of its answer
    for tree in pack:
        prompt_start = len(ids)
        ids += sequences[tree.sequence_ids[0]].prompt
        position_ids += range(tree.prompt_length)
        for index in tree.sequence_ids:
            starts[index] = prompt_start, len(ids)
            ids += sequences[index].answer
            position_ids += range(tree.prompt_length, len(sequences[index]))
    layout = PackedLayout(
        tuple(
            (tree.prompt_length, tuple(len(sequences[index].answer) for index in tree.sequence_ids))
            for tree in pack
        )
    )
    return _make_batch(sequences, [ids], [position_ids], layout, starts)


def _pad(sequences: Sequence[ScoredSequence], pack: Sequence[Tree]) -> ForwardBatch:
    """Right-padded rows.

    Under causal attention no token sees the padding: any id will do, and no mask is needed.
    """
    indices = sorted(index for tree in pack for index in tree.sequence_ids)
    width = max(len(sequences[index]) for index in indices)
    rows = [(sequences[index].prompt + sequences[index].answer + [0] * width)[:width] for index in indices]
    starts = {
        index: (row * width, row * width + len(sequences[index].prompt)) for row, index in enumerate(indices)
    }
    return _make_batch(sequences, rows, [list(range(width))] * len(rows), None, starts)


def _make_batch(
    sequences: Sequence[ScoredSequence],
    ids: list[list[int]],
    position_ids: list[list[int]],
    layout: PackedLayout | None,
    starts: dict[int, tuple[int, int]],
) -> ForwardBatch:
    """The batch of either layout: which tokens are scored, and at which position each one is predicted."""
    predict_at: list[int] = []
    targets: list[int] = []
    offsets: list[int] = []
    lengths: list[int] = []
    last_positions: list[int] = []
    indices = sorted(starts)
    for index in indices:
        sequence, (prompt_start, answer_start) = sequences[index], starts[index]
        prompt_length = len(sequence.prompt)
        positions = [  # of the sequence's tokens in the flattened input
            *range(prompt_start, prompt_start + prompt_length),
            *range(answer_start, answer_start + len(sequence.answer)),
        ]
        scored = sequence.scored_tokens()
        predict_at += [positions[position - 1] for position, _ in scored]
        targets += [token for _, token in scored]
        offsets += [position - prompt_length for position, _ in scored]
        lengths.append(len(scored))
        last_positions.append(positions[-1])
    return ForwardBatch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(position_ids),
        layout=layout,
        predict_at=torch.tensor(predict_at, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        offsets=torch.tensor(offsets, dtype=torch.long),
        lengths=torch.tensor(lengths, dtype=torch.long),
        last_positions=torch.tensor(last_positions, dtype=torch.long),
        sequence_ids=torch.tensor(indices, dtype=torch.long),
    )
