import itertools
import warnings

import pytest
import torch

from phalanx.aggregation import Krum, MultiKrum


def scores_by_hand(rows, num_neighbours):
    """Tries every set of neighbours and keeps the best: the definition, word for word."""
    found = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        sums = [
            sum((row - rows[j]).square().sum().item() for j in chosen)
            for chosen in itertools.combinations(others, num_neighbours)
        ]
        found.append(min(sums))
    return torch.tensor(found, dtype=torch.float64)


def test_is_what_the_definition_says(subtests):
    for (neighbours, fewer), (num_workers, num_byzantine) in itertools.product(
        [("paper", 2), ("byzfl", 1)], [(3, 0), (5, 1), (9, 2), (9, 3)]
    ):
        with subtests.test(
            neighbours=neighbours, fewer=fewer, num_workers=num_workers, num_byzantine=num_byzantine
        ):
            generator = torch.Generator().manual_seed(num_workers)
            rows = torch.randn(num_workers, 6, generator=generator, dtype=torch.float64)
            exact = scores_by_hand(rows, num_workers - num_byzantine - fewer)
            krum = Krum(num_byzantine, neighbours).explain(rows)
            torch.testing.assert_close(krum.scores, exact)
            assert torch.equal(krum.value, rows[exact.argmin()])
            assert krum.suspects.sum() == num_byzantine
            multi = MultiKrum(num_byzantine, neighbours=neighbours).explain(rows)
            best = exact.argsort()[: num_workers - num_byzantine]
            torch.testing.assert_close(multi.value, rows[best].mean(dim=0))
            assert set((~multi.suspects).nonzero().flatten().tolist()) == set(best.tolist())


def test_ties_go_to_the_smallest_id(subtests):
    for dim in [1, 20_000]:
        with subtests.test(dim=dim):
            rows = torch.tensor([[5.0], [1.0], [2.0], [1.0], [2.0]]).repeat(1, dim)
            assert Krum(0).explain(rows).weights.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
            assert MultiKrum(0, num_selected=1).explain(rows).weights.argmax() == 1


def test_is_one_of_the_messages_to_the_bit():
    rows = torch.randn(9, 20_000, generator=torch.Generator().manual_seed(0))
    answer = Krum(2).explain(rows)
    assert torch.equal(answer.value, rows[answer.weights.argmax()])


def test_dropped_workers_leave_fewer_to_survive():
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    rows[0] = torch.nan
    answer = Krum(2).explain(rows)
    assert answer.suspects.sum() == 2  # the dropped one, and one more


@pytest.mark.parametrize("rule", [Krum(2), MultiKrum(2)], ids=repr)
def test_warns_where_the_guarantee_does_not_reach(rule):
    with pytest.warns(UserWarning, match=r"num_workers >= 2 \* num_byzantine \+ 3"):
        rule(torch.zeros(6, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule(torch.zeros(7, 2))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="num_selected must be at least 1, got 0"):
        MultiKrum(num_selected=0)
    with pytest.raises(ValueError, match="num_selected must be at most"):
        MultiKrum(num_byzantine=1, num_selected=5)(torch.zeros(5, 2))
