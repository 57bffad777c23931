"""Plans: every sequence once, within the budget, one tree for each prompt, the same for the same input."""

import random

import pytest

from alignment_lab.engine.packing import ScoredSequence, build_trees, pack_evenly, pack_trees, pad_trees


def random_sequences(seed: int, count: int = 60) -> list[ScoredSequence]:
    """Answers of 1 to 30 tokens to a dozen prompts of 0 to 20 tokens; prompts repeat."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(50) for _ in range(rng.randrange(21))] for _ in range(12)]
    return [
        ScoredSequence(rng.choice(prompts), [rng.randrange(50) for _ in range(1 + rng.randrange(30))])
        for _ in range(count)
    ]


def pass_tokens(pack, plan) -> int:
    """Tokens of a forward pass: those of the trees, or rows times the longest row where padded."""
    return (
        sum(tree.num_tokens for tree in pack)
        if plan is pack_trees
        else max(tree.max_length for tree in pack) * sum(len(t.sequence_ids) for t in pack)
    )


def test_a_tree_is_a_prompt_and_its_answers():
    """Prompts are equal where their ids are, wherever the sequences stand.

    A text without a prompt shares nothing.
    """
    trees = build_trees(
        [
            ScoredSequence([1, 2], [3]),
            ScoredSequence([], [4, 4]),
            ScoredSequence([1, 2], [5, 6, 7]),
            ScoredSequence([1], [2, 3]),
            ScoredSequence([], [4, 4]),
        ]
    )
    assert [(tree.prompt_length, tree.sequence_ids, tree.num_tokens, tree.max_length) for tree in trees] == [
        (2, [0, 2], 2 + 1 + 3, 2 + 3),
        (0, [1], 2, 2),
        (1, [3], 3, 3),
        (0, [4], 2, 2),
    ]


@pytest.mark.parametrize("plan", [pack_trees, pad_trees])
@pytest.mark.parametrize("max_tokens", [1, 40, 100, 333, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_a_plan_has_every_sequence_once_and_keeps_to_the_budget(seed, max_tokens, plan):
    """Only a tree that is longer than the budget by itself exceeds it, and it is a pack alone."""
    trees = build_trees(random_sequences(seed))
    packs = plan(trees, max_tokens)
    indices = [index for pack in packs for tree in pack for index in tree.sequence_ids]
    assert sorted(indices) == list(range(60))
    # a tree is never split
    assert sorted(id(tree) for pack in packs for tree in pack) == sorted(map(id, trees))
    assert all(pass_tokens(pack, plan) <= max_tokens or len(pack) == 1 for pack in packs)
    assert all(packs)


@pytest.mark.parametrize("plan", [pack_trees, pad_trees])
def test_a_plan_is_the_same_for_the_same_sequences(plan):
    first, second = (
        [[tree.sequence_ids for tree in pack] for pack in plan(build_trees(random_sequences(3)), 120)]
        for _ in range(2)
    )
    assert first == second


def test_packing_wastes_little():
    """First fit, longest first, fills all packs but the last to more than half: never twice the least
    number.
    """
    trees = build_trees(random_sequences(1, 400))
    total = sum(tree.num_tokens for tree in trees)
    longest = max(tree.num_tokens for tree in trees)
    packs = pack_trees(trees, 2 * longest)
    assert len(packs) <= 2 * -(-total // (2 * longest))
    assert sum(sum(tree.num_tokens for tree in pack) <= longest for pack in packs) <= 1


def test_padding_groups_sequences_of_similar_length():
    """Longest first: of lengths 9, 2, 8, 3 and room for two rows of 9, the long ones share a batch, as do the
    short ones.
    """
    trees = build_trees([ScoredSequence([], list(range(length))) for length in (9, 2, 8, 3)])
    assert [[tree.max_length for tree in pack] for pack in pad_trees(trees, 18)] == [[9, 8], [3, 2]]


def test_no_sequences_need_no_packs():
    assert pack_trees([], 10) == pad_trees([], 10) == []


def test_a_prompt_is_computed_once():
    """Two answers of 3 and 4 tokens to 10: 17 tokens, where two sequences would be 13 and 14."""
    (tree,) = build_trees(
        [ScoredSequence(list(range(10)), [1, 2, 3]), ScoredSequence(list(range(10)), [1, 2, 3, 4])]
    )
    assert tree.num_tokens == 17
    assert pack_trees([tree], 17) == [[tree]]


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("max_tokens", [40, 100, 1000])
def test_several_processes_get_similar_packs_within_the_budget(world_size, max_tokens):
    """Every tree once; no pack over the budget but a tree that is longer by itself.

    The packs of a round are alike in size.
    """
    trees = build_trees([ScoredSequence([n], list(range(3 + 7 * n % 41))) for n in range(60)])
    packs = pack_evenly(trees, max_tokens, world_size)
    loads = [sum(tree.num_tokens for tree in pack) for pack in packs]
    assert sorted(index for pack in packs for tree in pack for index in tree.sequence_ids) == list(range(60))
    assert max(loads) <= max(max_tokens, max(tree.num_tokens for tree in trees))
    assert loads == sorted(loads, reverse=True)
    assert len(packs) % world_size == 0 and max(loads[:world_size]) - min(loads[:world_size]) <= max(
        tree.num_tokens for tree in trees
    )


def test_fewer_trees_than_processes_are_a_pack_each():
    trees = build_trees([ScoredSequence([n], [1, 2]) for n in range(3)])
    assert [len(pack) for pack in pack_evenly(trees, 1000, 8)] == [1, 1, 1]
