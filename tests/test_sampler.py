"""In which order rows are seen: every row once an epoch, by seed and epoch alone, kinds in proportion, units
whole.
"""

import random
from collections import Counter
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

from alignment_lab.training.sampler import GlobalBatchSampler


def make_sampler(rows: int, size: int, seed: int = 1) -> GlobalBatchSampler:
    return GlobalBatchSampler([[row] for row in range(rows)], [0] * rows, size, seed)


def test_rows_of_one_kind_come_in_the_permutation_of_seed_and_epoch():
    """Ten rows in batches of four: the last has two; epoch 2 of seed 1 is epoch 0 of seed 3."""
    sampler = make_sampler(10, 4)
    permutation = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    assert list(sampler) == [permutation[:4], permutation[4:8], permutation[8:]]
    assert len(sampler) == 3
    sampler.set_epoch(2)
    assert list(sampler) == list(make_sampler(10, 4, seed=3))


def test_epochs_differ_and_have_every_row_once():
    sampler = make_sampler(20, 6)
    epochs = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        epochs.append([*chain(*sampler)])
        assert sorted(epochs[-1]) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 5
    sampler.set_epoch(0)
    assert [*chain(*sampler)] == epochs[0]


def test_the_same_seed_is_the_same_order_and_another_is_not():
    assert list(make_sampler(50, 8, 1)) == list(make_sampler(50, 8, 1)) != list(make_sampler(50, 8, 2))


@pytest.mark.parametrize("shares", [(32, 32), (48, 16), (60, 4), (1, 40), (5, 7), (64, 0)])
def test_every_batch_has_its_share_of_each_kind(shares):
    """Of n_k units of a kind among n, a batch of b has b * n_k / n of them, give or take one."""
    kinds = [True] * shares[0] + [False] * shares[1]
    random.Random(0).shuffle(kinds)
    rows = len(kinds)
    sampler = GlobalBatchSampler([[row] for row in range(rows)], kinds, 8, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(chain(*batches)) == list(range(rows))
        for batch in batches:
            counts = Counter(kinds[row] for row in batch)
            for kind in (True, False):
                assert abs(counts[kind] - len(batch) * kinds.count(kind) / rows) <= 1


def test_inside_of_a_kind_the_order_is_random():
    """Which rows of a kind share a batch changes from epoch to epoch."""
    kinds = [True, False] * 20
    sampler = GlobalBatchSampler([[row] for row in range(40)], kinds, 8, seed=3)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([frozenset(batch) for batch in sampler])
    assert not set(epochs[0]) & set(epochs[1])


def test_units_stay_together():
    """A batch of five is five pairs: ten rows, the halves behind each other in their order."""
    units = [[2 * index, 2 * index + 1] for index in range(15)]
    sampler = GlobalBatchSampler(units, [(True, False)] * 15, 5, seed=2)
    assert len(sampler) == 3 and [len(batch) for batch in sampler] == [10] * 3
    rows = [*chain(*sampler)]
    assert sorted(rows) == list(range(30))
    assert all(rows[index + 1] == rows[index] + 1 for index in range(0, 30, 2))


def test_pairs_come_in_the_order_that_they_have_when_unsplit():
    """The same seed gives KTO the pairs of each DPO batch, as two rows each."""
    pairs = GlobalBatchSampler(
        [[2 * index, 2 * index + 1] for index in range(9)], [(True, False)] * 9, 4, seed=5
    )
    assert [[row // 2 for row in batch[::2]] for batch in pairs] == list(make_sampler(9, 4, seed=5))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_batch(workers):
    """A worker collates, it does not choose."""
    loader = DataLoader(
        list(range(23)), batch_sampler=make_sampler(23, 4), collate_fn=list, num_workers=workers
    )
    assert list(loader) == list(make_sampler(23, 4))
