import itertools

import pytest
import torch

from phalanx.aggregation import Bulyan


def by_hand(rows, num_byzantine):
    """Chooses one message after the other with loops, then goes through the coordinates."""
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * num_byzantine:
        near = max(1, len(left) - num_byzantine - 2)
        scores = []
        for i in left:
            squared = sorted((rows[i] - rows[j]).square().sum().item() for j in left if j != i)
            scores.append(sum(squared[:near]))
        best = left[scores.index(min(scores))]
        chosen.append(best)
        left.remove(best)
    picked = rows[chosen]
    value = []
    for column in picked.T:
        ordered = column.sort().values
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        nearest = (ordered - middle).abs().argsort(stable=True)[: len(ordered) - 2 * num_byzantine]
        value.append(ordered[nearest].mean())
    return torch.stack(value), chosen


def test_is_what_the_definition_says(subtests):
    for (num_workers, num_byzantine), seed in itertools.product(
        [(3, 0), (7, 1), (9, 1), (11, 2), (15, 3)], range(5)
    ):
        with subtests.test(num_workers=num_workers, num_byzantine=num_byzantine, seed=seed):
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(num_workers, 6, generator=generator, dtype=torch.float64)
            answer = Bulyan(num_byzantine).explain(rows)
            exact, chosen = by_hand(rows, num_byzantine)
            torch.testing.assert_close(answer.value, exact)
            assert (~answer.suspects).nonzero().flatten().tolist() == sorted(chosen)


def test_needs_many_workers():
    with pytest.raises(ValueError, match=r"at most \(num_workers - 3\) / 4, got 2 of 10"):
        Bulyan(2)(torch.zeros(10, 3))
