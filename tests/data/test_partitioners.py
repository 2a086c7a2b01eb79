"""Laws of all partitioners, and what each adds to them."""

import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import concrete
from phalanx import data
from phalanx.data import (
    DirichletPartitioner,
    IidPartitioner,
    LongTailedPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
)

SHARDS = [kind() for kind in concrete(data, Partitioner)]
SHARDS += [
    LongTailedPartitioner(keep=0.7, partitioner=ShardPartitioner()),
    DirichletPartitioner(alpha=0.01),
    DirichletPartitioner(alpha=0.1, min_size=2),
    DirichletPartitioner(balance=True),
    SizePartitioner("square"),
    SizePartitioner("exponential"),
    PathologicalPartitioner(3),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_targets(num_samples, num_classes, seed=0):
    return torch.randint(num_classes, (num_samples,), generator=seeded(seed))


@settings(max_examples=30)
@given(
    num_samples=st.integers(0, 200),
    num_classes=st.integers(1, 12),
    num_workers=st.integers(1, 25),
    seed=st.integers(0, 2**32),
)
def no_sample_is_dealt_twice(shards, num_samples, num_classes, num_workers, seed):
    targets = some_targets(num_samples, num_classes, seed)
    before = targets.clone()
    try:
        dealt = shards.split(targets, num_workers, seeded(seed))
    except ValueError as error:  # rather than for ever, or with a class at nobody
        if not re.match("(num_classes|min_size) must be", str(error)):
            raise
        return
    assert torch.equal(targets, before)
    assert len(dealt) == num_workers
    assert all(shard.dtype == torch.int64 and shard.ndim == 1 for shard in dealt)
    everything = torch.cat(dealt)
    assert len(everything.unique()) == len(everything)
    if isinstance(shards, LongTailedPartitioner):
        assert targets[everything].unique().equal(targets.unique())
    else:
        assert everything.sort().values.equal(torch.arange(num_samples))
    again = shards.split(targets, num_workers, seeded(seed))
    assert all(torch.equal(*pair) for pair in zip(dealt, again, strict=True))


def another_seed_deals_otherwise(shards):
    if isinstance(shards, NaturalIdPartitioner):  # with fewer clients than ids only
        return
    targets = some_targets(500, 10)
    one, other = (shards.split(targets, 5, seeded(seed)) for seed in (1, 2))
    assert not all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def the_global_generator_is_left_alone(shards):
    before = torch.random.get_rng_state()
    shards.split(some_targets(50, 3), 5, seeded())
    assert torch.equal(before, torch.random.get_rng_state())


def pickles_to_its_equal(shards):
    assert pickle.loads(pickle.dumps(shards)) == shards


def bad_arguments_are_named(shards):
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        shards.split(torch.tensor([0, 1]), 0)
    with pytest.raises(ValueError, match="targets must be 0 or more, got -1"):
        shards.split(torch.tensor([0, -1]), 2)


LAWS = (
    no_sample_is_dealt_twice,
    another_seed_deals_otherwise,
    the_global_generator_is_left_alone,
    pickles_to_its_equal,
    bad_arguments_are_named,
)


@pytest.mark.parametrize("shards", SHARDS, ids=repr)
def test_laws(shards, subtests):
    for law in LAWS:
        with subtests.test(law.__name__):
            law(shards)


@pytest.mark.parametrize("shards", [IidPartitioner(), ShardPartitioner()], ids=repr)
def test_shards_are_equally_large_give_or_take_one(shards):
    sizes = [len(shard) for shard in shards.split(some_targets(103, 10), 10, seeded())]
    assert sorted(set(sizes)) == [10, 11]


def test_alike_workers_hold_every_class():
    targets = some_targets(10_000, 10)
    counts = torch.stack(
        [targets[shard].bincount(minlength=10) for shard in IidPartitioner().split(targets, 10)]
    )
    # 100 expected in each cell, with a standard deviation below 10.
    assert 50 < counts.min() < counts.max() < 150


def test_sorted_workers_hold_neighbouring_classes_in_order():
    targets = some_targets(1000, 10)
    dealt = [targets[shard] for shard in ShardPartitioner().split(targets, 20, seeded())]
    assert torch.cat(dealt).equal(targets.sort().values)
    assert max(len(classes.unique()) for classes in dealt) <= 2


def test_within_a_class_the_order_is_random():
    targets = torch.zeros(1000, dtype=torch.int64)
    first, _ = ShardPartitioner().split(targets, 2, seeded())
    # Half of the first 500 in a random half of 1000: 250, with a standard deviation of 8.
    assert 200 < (first < 500).sum() < 300


def largest_share(alpha, num_workers=10):
    """Mean over classes of the share that goes to whoever gets most."""
    targets = torch.arange(20_000) % 20
    dealt = DirichletPartitioner(alpha).split(targets, num_workers, seeded(3))
    counts = torch.stack([targets[shard].bincount(minlength=20) for shard in dealt])
    return (counts.amax(dim=0) / counts.sum(dim=0)).mean().item()


def test_alpha_says_how_alike_the_workers_are():
    shares = [largest_share(alpha) for alpha in (0.01, 0.3, 3.0, 1000.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9
    assert shares[-1] < 0.12


@pytest.mark.slow
def test_a_share_has_the_variance_of_its_distribution():
    # One class a draw: the share of a worker is Beta(alpha, 9 alpha), of variance
    # 0.1 * 0.9 / (10 alpha + 1).
    targets = torch.arange(600_000) % 600
    first = DirichletPartitioner(alpha=1.0).split(targets, 10, seeded(5))[0]
    shares = targets[first].bincount(minlength=600) / 1000
    assert shares.mean().item() == pytest.approx(0.1, abs=0.012)
    assert shares.var().item() == pytest.approx(0.09 / 11, rel=0.25)


def test_the_tail_is_as_long_as_it_is_told():
    targets = torch.arange(1000) % 5
    kept = torch.cat(LongTailedPartitioner(keep=0.5).split(targets, 3, seeded()))
    assert targets[kept].bincount().tolist() == [200, 100, 50, 25, 12]
    all_of_it = torch.cat(LongTailedPartitioner(keep=1.0).split(targets, 3, seeded()))
    assert len(all_of_it) == 1000


def test_the_tail_may_be_sorted():
    targets = some_targets(2000, 4)
    dealt = LongTailedPartitioner(partitioner=ShardPartitioner()).split(targets, 6, seeded())
    classes = targets[torch.cat(dealt)]
    assert classes.equal(classes.sort().values)


def test_fields_are_checked(subtests):
    for make, message in (
        (lambda: DirichletPartitioner(alpha=0.0), "alpha must be finite and above 0, got 0.0"),
        (
            lambda: DirichletPartitioner(alpha=float("nan")),
            "alpha must be finite and above 0, got nan",
        ),
        (lambda: LongTailedPartitioner(keep=0.0), "keep must be above 0 and at most 1, got 0.0"),
        (lambda: LongTailedPartitioner(keep=1.5), "keep must be above 0 and at most 1, got 1.5"),
    ):
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make()


def test_pathological_clients_have_so_many_classes(subtests):
    targets = torch.arange(1000) % 10
    for number in (1, 2, 3, 10):
        with subtests.test(number):
            dealt = PathologicalPartitioner(number).split(targets, 20, seeded())
            assert {len(targets[shard].unique()) for shard in dealt} == {number}
    with pytest.raises(ValueError, match="num_classes must be at most the 10 classes"):
        PathologicalPartitioner(11).split(targets, 20)
    with pytest.raises(ValueError, match="num_classes must be such that 3 clients have all 10"):
        PathologicalPartitioner(2).split(targets, 3)


def test_natural_ids_are_never_parted():
    ids = torch.randint(30, (500,), generator=seeded()).tolist()
    dealt = NaturalIdPartitioner(ids).split(torch.zeros(500, dtype=torch.int64), 7, seeded())
    owners = [{ids[index] for index in shard.tolist()} for shard in dealt]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len(set(ids))
    with pytest.raises(ValueError, match="ids must be one for each of 3 samples, got 500"):
        NaturalIdPartitioner(ids).split(torch.zeros(3, dtype=torch.int64), 7)


def test_sizes_grow_as_they_are_told_and_nobody_goes_empty(subtests):
    targets = torch.zeros(2000, dtype=torch.int64)
    for kind in ("lognormal", "linear", "square", "exponential"):
        with subtests.test(kind):
            sizes = [len(shard) for shard in SizePartitioner(kind).split(targets, 30, seeded())]
            assert min(sizes) >= 1
            assert max(sizes) > 1.9 * 2000 / 30
            assert kind == "lognormal" or sizes == sorted(sizes)
    even = [len(shard) for shard in SizePartitioner(sigma=0.0).split(targets, 30, seeded())]
    assert set(even) <= {66, 67}


def test_dirichlet_keeps_its_bounds_or_refuses():
    targets = torch.arange(2000) % 10
    dealt = DirichletPartitioner(0.5, min_size=20).split(targets, 20, seeded())
    assert min(map(len, dealt)) >= 20
    balanced = DirichletPartitioner(0.5, balance=True).split(targets, 20, seeded())
    plain = DirichletPartitioner(0.5).split(targets, 20, seeded())
    assert max(map(len, balanced)) < max(map(len, plain))
    with pytest.raises(ValueError, match="min_size must be at most 100"):
        DirichletPartitioner(min_size=101).split(targets, 20)
    with pytest.raises(ValueError, match="did not have in 1000 draws"):
        DirichletPartitioner(0.001, min_size=90).split(targets, 20, seeded())
    alike = DirichletPartitioner(1e3).split(targets, 10, seeded())
    shares = [targets[shard].bincount(minlength=10) / len(shard) for shard in alike]
    assert all((share - 0.1).abs().max() < 0.05 for share in shares)
    skewed = DirichletPartitioner(0.05).split(targets, 20, seeded())
    effective = []
    for shard in (one for one in skewed if len(one)):
        share = targets[shard].bincount(minlength=10) / len(shard)
        effective.append(1 / (share**2).sum().item())
    assert torch.tensor(effective).median() <= 2
