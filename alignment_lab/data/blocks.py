"""Documents to blocks of one length: long documents are split, short ones share a block. No token is lost."""

from __future__ import annotations

from bisect import bisect_left, insort


def split_document(ids: list[int], max_length: int) -> list[list[int]]:
    """Chunks of at most `max_length` tokens; no chunk is one token, which would have nothing to predict."""
    starts = list(range(0, len(ids), max_length))
    if len(starts) > 1 and len(ids) - starts[-1] == 1:
        starts[-1] -= 1
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


def pack_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: groups of indices whose lengths sum to at most `capacity`.

    The longest come first, each to the group with the least space left. Groups, and the indices in each, are
    in ascending order: rows that were shuffled stay shuffled.
    """
    groups: list[list[int]] = []
    spaces: list[int] = []  # the distinct values of space left, ascending
    groups_by_space: dict[int, list[list[int]]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        position = bisect_left(spaces, lengths[index])
        if position < len(spaces):
            space = spaces[position]
            group = groups_by_space[space].pop()
            if not groups_by_space[space]:
                del spaces[position]
        else:
            space, group = capacity, []
            groups.append(group)
        group.append(index)
        space -= lengths[index]
        if not groups_by_space.setdefault(space, []):
            insort(spaces, space)
        groups_by_space[space].append(group)
    return sorted(sorted(group) for group in groups)
