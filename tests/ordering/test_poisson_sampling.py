"""Poisson sampling: independent coins of the right probability, and disjoint partitions."""

import torch

from phalanx.ordering import Batches, PoissonSampling


def drawn(order, batches, step):
    return [order.samples(batches, step, one) for one in range(batches.num_partitions)]


def test_partitions_are_disjoint_and_a_sample_stays_in_its_own():
    batches = Batches(200, 60, 3, seed=1)
    for step in range(20):
        for partition, one in enumerate(drawn(PoissonSampling("secret"), batches, step)):
            assert (one % 3 == partition).all()
            assert one.unique().numel() == one.numel()
            assert one.dtype == torch.int64


def test_coins_are_fair_and_independent_of_one_another_and_of_other_rounds():
    batches, steps = Batches(50, 10, 1, seed=0), 20_000
    taken = torch.zeros(steps, 50)
    for step in range(steps):
        taken[step, PoissonSampling("secret").samples(batches, step, 0)] = 1
    error = (0.2 * 0.8 / steps) ** 0.5
    assert (taken.mean(dim=0) - 0.2).abs().max() < 4.5 * error
    sizes = taken.sum(dim=1)
    assert abs(sizes.var().item() / (50 * 0.2 * 0.8) - 1) < 0.05  # binomial, not fixed
    pairs = (taken - 0.2).T @ (taken - 0.2) / steps / 0.16
    assert (pairs - torch.eye(50)).abs().max() < 5.5 / steps**0.5
    lagged = (taken[1:] - 0.2).T @ (taken[:-1] - 0.2) / steps / 0.16
    assert lagged.abs().max() < 5.5 / steps**0.5


def test_everybody_takes_part_where_a_batch_holds_all():
    assert PoissonSampling().samples(Batches(7, 7, 1, 0), 3, 0).tolist() == list(range(7))


def test_the_secret_decides_and_is_not_shown():
    batches = Batches(100, 50, 1, seed=0)
    first, second = (PoissonSampling(one).samples(batches, 0, 0) for one in ("a", "b"))
    assert not first.equal(second) if len(first) == len(second) else True
    assert first.equal(PoissonSampling("a").samples(Batches(100, 50, 1, seed=9), 0, 0))
    assert "very" not in repr(PoissonSampling("very secret"))
