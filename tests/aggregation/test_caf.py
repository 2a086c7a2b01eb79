import itertools

import torch

from phalanx.aggregation import CAF


def by_hand(rows, num_byzantine):
    """The definition in d dimensions, with the covariance itself."""
    credit = torch.ones(len(rows), dtype=torch.float64)
    best, answer = float("inf"), rows.mean(dim=0)
    while credit.sum() > len(rows) - 2 * num_byzantine:
        mean = credit @ rows / credit.sum()
        offsets = rows - mean
        covariance = (credit[:, None] * offsets).T @ offsets / credit.sum()
        values, vectors = torch.linalg.eigh(covariance)
        if values[-1] < best:
            best, answer = values[-1], mean
        along = (offsets @ vectors[:, -1]).square()
        credit = credit * (1 - along / along[credit > 0].max()).clamp(min=0)
    return answer


def test_is_what_the_definition_says(subtests):
    for (num_workers, num_byzantine), lie in itertools.product(
        [(3, 0), (5, 2), (9, 2), (15, 4)], [0.0, 1.0, 30.0]
    ):
        with subtests.test(num_workers=num_workers, num_byzantine=num_byzantine, lie=lie):
            generator = torch.Generator().manual_seed(num_workers)
            rows = torch.randn(num_workers, 6, generator=generator, dtype=torch.float64)
            rows[:num_byzantine] += lie
            torch.testing.assert_close(CAF(num_byzantine)(rows), by_hand(rows, num_byzantine))


def test_takes_all_weight_from_who_stands_out():
    rows = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    rows[[1, 5]] += 1e3
    answer = CAF(2).explain(rows)
    assert answer.suspects[[1, 5]].all()
    assert not answer.weights[[1, 5]].any()


def test_is_deterministic():
    rows = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CAF(2)(rows), CAF(2)(rows))
