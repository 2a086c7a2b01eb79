"""Batches that grow: when, by how much, and that no sample is lost or seen twice."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from phalanx.batch_size import (
    AccordionBatch,
    AccordionBatchSampler,
    epochs_to_accuracy,
    gradient_diversity,
    largest_batch,
    suggest_batch,
)
from phalanx.data import Digits
from phalanx.models import MLP
from phalanx.randomness import seeded


def sizes(batch, norms, rates=None, diversity=None):
    """Batch sizes of the epochs, and of the one after them."""
    rates = rates or [1.0] * (len(norms) + 1)
    state = batch.init()
    found = [state.size]
    for epoch, norm in enumerate(norms):
        state = batch.update(state, norm, rates[epoch], rates[epoch + 1], diversity)
        found.append(state.size)
    return found


def test_the_published_schedule_takes_a_fifth_of_the_updates():
    """Small for 20 of 300 epochs, as in all published logs: 5.45 times fewer updates."""
    found = sizes(AccordionBatch(), [5.0] * 299)
    assert found == [512] * 20 + [4096] * 280
    updates = sum(1 / size for size in found)
    assert 300 / 512 / updates == pytest.approx(5.45, abs=0.01)


def test_a_rate_that_drops_keeps_the_batch_small_until_the_next_check_and_one_that_grows_does_not():
    batch = AccordionBatch(10, 80, interval=2)
    steady = [5.0] * 8
    assert sizes(batch, steady) == [10] * 4 + [80] * 5
    warm = [0.1 * epoch for epoch in range(1, 10)]
    assert sizes(batch, steady, warm) == [10] * 4 + [80] * 5
    at_the_check = [1.0] * 4 + [0.1] * 5
    assert sizes(batch, steady, at_the_check) == [10] * 6 + [80] * 3
    later = [1.0] * 7 + [0.1] * 2
    assert sizes(batch, steady, later) == [10] * 4 + [80] * 5  # it never shrinks


@given(
    norms=st.lists(st.floats(0, 100), max_size=20),
    rates=st.lists(st.floats(0.01, 1), min_size=21, max_size=21),
    diversity=st.none() | st.floats(1, 1e4),
)
def test_it_only_grows_and_stays_within_its_bounds(norms, rates, diversity):
    batch = AccordionBatch(16, 256, interval=1)
    found = sizes(batch, norms, rates, diversity)
    assert found == sorted(found)
    assert set(found) <= set(range(16, 257))
    assert found[:2] == [16] * len(found[:2])
    if diversity is None:
        assert set(found) <= {16, 256}


def test_it_grows_to_what_diversity_allows_for():
    batch = AccordionBatch(16, 256, interval=1)
    assert sizes(batch, [5.0] * 3, diversity=100.0)[-1] == 101
    assert sizes(batch, [5.0] * 3, diversity=2.0)[-1] == 16
    assert sizes(batch, [5.0] * 3, diversity=math.inf)[-1] == 256


@given(
    num_samples=st.integers(1, 200),
    num_ranks=st.integers(1, 5),
    extra=st.integers(0, 40),
    norms=st.lists(st.floats(1, 9), max_size=4),
)
def test_every_sample_is_on_one_rank_once_an_epoch(num_samples, num_ranks, extra, norms):
    num_samples = max(num_samples, num_ranks)
    low = 2 * num_ranks + extra
    batch = AccordionBatch(low, 3 * low, interval=1)
    ranks = [
        AccordionBatchSampler(num_samples, batch, rank=rank, num_ranks=num_ranks, seed=4)
        for rank in range(num_ranks)
    ]
    for norm in [*norms, 1.0]:
        shares = [list(one) for one in ranks]
        seen = [sample for share in shares for part in share for sample in part]
        assert sorted(seen) == list(range(num_samples))
        for parts in zip(*shares, strict=True):  # as many batches on all ranks
            counts = [len(part) for part in parts]
            assert min(counts) >= 1
            assert max(counts) - min(counts) <= 1
            assert sum(counts) <= ranks[0].state.size
        assert [len(one) for one in ranks] == [len(share) for share in shares]
        for one in ranks:
            one.on_epoch_end(norm)


def test_orders_differ_from_epoch_to_epoch_and_go_on_after_a_checkpoint():
    batch = AccordionBatch(4, 20, interval=1)
    straight = AccordionBatchSampler(40, batch, seed=1)
    first = list(straight)
    assert list(straight) == first
    for _ in range(2):
        straight.on_epoch_end(3.0)
    resumed = AccordionBatchSampler(40, batch, seed=1)
    resumed.load_state_dict(straight.state_dict())
    assert list(resumed) == list(straight)
    assert [sample for part in straight for sample in part][:4] != first[0]
    assert len(resumed) == 2


def test_it_feeds_a_data_loader():
    dataset = TensorDataset(torch.arange(30))
    sampler = AccordionBatchSampler(30, AccordionBatch(4, 8), rank=1, num_ranks=2)
    found = [batch for (batch,) in DataLoader(dataset, batch_sampler=sampler)]
    assert [len(batch) for batch in found] == [len(share) for share in sampler]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AccordionBatch(0), "low must be at least 1, got 0"),
        (lambda: AccordionBatch(8, 4), "high must be at least low, 8, got 4"),
        (lambda: AccordionBatch(eta=-1.0), "eta must be at least 0"),
        (
            lambda: AccordionBatchSampler(9, AccordionBatch(8, 8), rank=2, num_ranks=2),
            "rank must be at least 0 and below 2, got 2",
        ),
        (
            lambda: AccordionBatchSampler(9, AccordionBatch(3, 8), num_ranks=2),
            "low must be at least 2 x 2 ranks, got 3",
        ),
        (
            lambda: AccordionBatchSampler(1, AccordionBatch(8, 8), num_ranks=2),
            "num_samples must be at least 2, got 1",
        ),
        (lambda: suggest_batch(3.0, slowdown=0.0), "slowdown must be above 0"),
        (lambda: suggest_batch(3.0, num_workers=0), "num_workers must be at least 1"),
        (lambda: suggest_batch(3.0, least=0), "least must be at least 1, got 0"),
        (lambda: suggest_batch(3.0, least=4, most=3), "most must be at least 4, got 3"),
        (lambda: suggest_batch(math.inf), "most must be given"),
        (lambda: largest_batch(lambda size, rate: 1, [], [0.1]), "must not be empty"),
        (
            lambda: largest_batch(lambda size, rate: 1, [1], [0.1], tolerance=-1.0),
            "tolerance must be at least 0",
        ),
    ],
    ids=range(13),
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"diversity": 40.0}, 41),
        ({"diversity": 40.0, "slowdown": 0.1}, 5),
        ({"diversity": 40.0, "num_workers": 8}, 40),
        ({"diversity": 40.0, "most": 32}, 32),
        ({"diversity": 2.0, "num_workers": 8, "least": 8}, 8),
        ({"diversity": None, "least": 8}, 8),
        ({"diversity": math.nan, "least": 8}, 8),
        ({"diversity": math.inf, "most": 64}, 64),
    ],
    ids=str,
)
def test_suggestions(options, expected):
    assert suggest_batch(**options) == expected


def test_a_sweep_keeps_the_best_rate_of_every_size():
    epochs = {(8, 0.1): 5, (8, 1.0): 4, (16, 0.1): 8, (16, 1.0): 4, (32, 1.0): 5, (64, 0.1): None}
    found = largest_batch(lambda *one: epochs.get(one), [64, 8, 32, 16], [0.1, 1.0])
    assert [tuple(trial) for trial in found.trials] == [
        (8, 1.0, 4),
        (16, 1.0, 4),
        (32, 1.0, 5),
        (64, None, None),
    ]
    assert found.batch_size == 16
    assert largest_batch(lambda *one: epochs.get(one), [8, 32], [1.0], tolerance=0.25)[0] == 32
    assert largest_batch(lambda *one: None, [8], [1.0]).batch_size is None


def test_epochs_to_an_accuracy():
    splits = Digits().load()
    inputs, targets = splits.train.tensors
    data = TensorDataset(inputs[:300], targets[:300])
    with seeded(0, "weights"):
        model = MLP((1, 8, 8), 10, hidden=[16])
    before = [value.clone() for value in model.parameters()]
    small = epochs_to_accuracy(model, data, 8, 0.1, target=0.9)
    large = epochs_to_accuracy(model, data, 100, 0.1, target=0.9)
    assert 1 <= small < large
    assert epochs_to_accuracy(model, data, 100, 0.1, target=0.9, most_epochs=large - 1) is None
    assert epochs_to_accuracy(model, data, 100, 1e30, target=0.9) is None  # overflows
    assert all(map(torch.equal, model.parameters(), before))
    assert gradient_diversity(model, data).value > 1
