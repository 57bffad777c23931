"""Documents of any length to blocks of one length: long ones are cut, short ones share a block. No token is lost."""

from __future__ import annotations

from bisect import bisect_left, insort


def pieces(ids: list[int], most: int) -> list[list[int]]:
    """A document in pieces of at most `most` tokens; none of a single token, which would have nothing to predict."""
    cuts = list(range(0, len(ids), most))
    if len(cuts) > 1 and len(ids) - cuts[-1] == 1:
        cuts[-1] -= 1
    return [ids[start:end] for start, end in zip(cuts, [*cuts[1:], len(ids)], strict=True)]


def best_fit(lengths: list[int], most: int) -> list[list[int]]:
    """Places grouped so that the lengths of a group add up to at most `most`: the longest first, each where least room is left over.

    Groups, and the places in each, come in the order of the places: what was shuffled stays so.
    """
    groups: list[list[int]] = []
    rooms: list[int] = []  # the distinct rooms left, ascending
    open_groups: dict[int, list[list[int]]] = {}  # room left -> its groups
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        at = bisect_left(rooms, lengths[place])
        if at < len(rooms):
            room = rooms[at]
            group = open_groups[room].pop()
            if not open_groups[room]:
                del rooms[at]
        else:
            room, group = most, []
            groups.append(group)
        group.append(place)
        room -= lengths[place]
        if not open_groups.setdefault(room, []):
            insort(rooms, room)
        open_groups[room].append(group)
    return sorted(sorted(group) for group in groups)
