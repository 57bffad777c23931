"""What is computed together: every sequence once, within the budget, those of one prompt in one tree, the same for the same input."""

import random

import pytest

from alignment_lab.engine.packing import ScoredSequence, build_trees, pack_evenly, pack_trees, pad_trees


def drawn(seed: int, count: int = 60) -> list[ScoredSequence]:
    """Answers of 1 to 30 tokens to a dozen prompts of 0 to 20 tokens, some of them asked several times."""
    dice = random.Random(seed)
    prompts = [[dice.randrange(50) for _ in range(dice.randrange(21))] for _ in range(12)]
    return [
        ScoredSequence(dice.choice(prompts), [dice.randrange(50) for _ in range(1 + dice.randrange(30))])
        for _ in range(count)
    ]


def cost(pack, plan) -> int:
    """Tokens of a forward pass: all of the trees' own, or as many rows as there are sequences, as wide as the widest."""
    return (
        sum(tree.num_tokens for tree in pack)
        if plan is pack_trees
        else max(tree.max_length for tree in pack) * sum(len(t.sequence_ids) for t in pack)
    )


def test_a_tree_is_a_prompt_and_its_answers():
    """Prompts are equal where their ids are, wherever the sequences stand; a text without a prompt shares nothing."""
    found = build_trees(
        [
            ScoredSequence([1, 2], [3]),
            ScoredSequence([], [4, 4]),
            ScoredSequence([1, 2], [5, 6, 7]),
            ScoredSequence([1], [2, 3]),
            ScoredSequence([], [4, 4]),
        ]
    )
    assert [(tree.prompt_length, tree.sequence_ids, tree.num_tokens, tree.max_length) for tree in found] == [
        (2, [0, 2], 2 + 1 + 3, 2 + 3),
        (0, [1], 2, 2),
        (1, [3], 3, 3),
        (0, [4], 2, 2),
    ]


@pytest.mark.parametrize("plan", [pack_trees, pad_trees])
@pytest.mark.parametrize("budget", [1, 40, 100, 333, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_a_plan_has_every_sequence_once_and_keeps_to_the_budget(seed, budget, plan):
    """Only a tree that is longer than the budget by itself exceeds it, and goes alone."""
    planned = build_trees(drawn(seed))
    packs = plan(planned, budget)
    members = [member for pack in packs for tree in pack for member in tree.sequence_ids]
    assert sorted(members) == list(range(60))
    assert sorted(id(tree) for pack in packs for tree in pack) == sorted(
        map(id, planned)
    )  # a tree is never parted
    assert all(cost(pack, plan) <= budget or len(pack) == 1 for pack in packs)
    assert all(packs)


@pytest.mark.parametrize("plan", [pack_trees, pad_trees])
def test_a_plan_is_the_same_for_the_same_sequences(plan):
    one, other = (
        [[tree.sequence_ids for tree in pack] for pack in plan(build_trees(drawn(3)), 120)] for _ in range(2)
    )
    assert one == other


def test_packing_wastes_little():
    """First fit, longest first, fills all packs but the last to more than half, and never needs twice the least number."""
    planned = build_trees(drawn(1, 400))
    total = sum(tree.num_tokens for tree in planned)
    longest = max(tree.num_tokens for tree in planned)
    packs = pack_trees(planned, 2 * longest)
    assert len(packs) <= 2 * -(-total // (2 * longest))
    assert sum(sum(tree.num_tokens for tree in pack) <= longest for pack in packs) <= 1


def test_padding_puts_sequences_of_like_length_together():
    """The longest first: of lengths 9, 2, 8, 3 and room for two rows of 9, the long ones share a batch, and the short ones do."""
    planned = build_trees([ScoredSequence([], list(range(length))) for length in (9, 2, 8, 3)])
    assert [[tree.max_length for tree in pack] for pack in pad_trees(planned, 18)] == [[9, 8], [3, 2]]


def test_no_sequences_need_no_pass():
    assert pack_trees([], 10) == pad_trees([], 10) == []


def test_a_prompt_is_computed_once():
    """Two answers of 3 and 4 tokens to 10: 17 tokens, where two sequences would be 13 and 14."""
    (tree,) = build_trees(
        [ScoredSequence(list(range(10)), [1, 2, 3]), ScoredSequence(list(range(10)), [1, 2, 3, 4])]
    )
    assert tree.num_tokens == 17
    assert pack_trees([tree], 17) == [[tree]]


@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize("budget", [40, 100, 1000])
def test_several_processes_get_alike_packs_within_the_budget(parts, budget):
    """Every tree once; no pack over the budget but a tree that is longer by itself; the packs of a round are alike in size."""
    planned = build_trees([ScoredSequence([n], list(range(3 + 7 * n % 41))) for n in range(60)])
    packs = pack_evenly(planned, budget, parts)
    loads = [sum(tree.num_tokens for tree in pack) for pack in packs]
    assert sorted(member for pack in packs for tree in pack for member in tree.sequence_ids) == list(range(60))
    assert max(loads) <= max(budget, max(tree.num_tokens for tree in planned))
    assert loads == sorted(loads, reverse=True)
    assert len(packs) % parts == 0 and max(loads[:parts]) - min(loads[:parts]) <= max(
        tree.num_tokens for tree in planned
    )


def test_fewer_trees_than_processes_are_a_pack_each():
    planned = build_trees([ScoredSequence([n], [1, 2]) for n in range(3)])
    assert [len(pack) for pack in pack_evenly(planned, 1000, 8)] == [1, 1, 1]
