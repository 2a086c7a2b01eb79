"""The best label of an axis is chosen by the first seed, and run with all."""

import math
from functools import partial

from phalanx import experiments
from phalanx.experiments import Records, grid, tuned

measure = partial(experiments.measure, jobs=1)


def run(method, rate, seed):
    """Learns best at the rate 0.2, the other method at 0.1 with the first seed; never from 9 on."""
    best = 0.2 if method == "one" else 0.1 + seed
    return {"loss": math.nan if rate >= 9 else abs(rate - best), "seed_seen": seed}


def cells(seeds=3):
    return grid(run, {"method": ["one", "other"], "rate": [9, 0.1, 0.2], "seed": range(seeds)})


def test_each_method_runs_with_the_label_of_its_least_loss_at_the_first_seed():
    found = tuned(cells(), "rate", "loss", measure)
    assert [one["rate"] for one in found.where(tuned=True, method="one")] == [0.2] * 3
    assert [one["rate"] for one in found.where(tuned=True, method="other")] == [0.1] * 3
    assert found.where(tuned=True, method="one").labels("seed") == [0, 1, 2]
    assert found.where(method="one", seed=0).labels("rate") == [9, 0.1, 0.2]
    assert len(found) == 2 * (3 + 2)
    assert len(found.where(tuned=False)) == 2 * 2


def test_nothing_is_measured_twice_or_without_need():
    asked = []

    def watched(some):
        asked.append([cell.labels["seed"] for cell in some])
        return measure(some)

    tuned(cells(2), "rate", "loss", watched)
    assert asked == [[0] * 6, [1, 1]]


def test_of_equal_losses_the_first_label_is_taken_even_if_none_was_measured(subtests):
    for rates in ([9, 10], ["high", "low"]):
        with subtests.test(rates=rates):
            axis = {rate: {"rate": rate if rate in (9, 10) else 0.1} for rate in rates}
            equal = grid(run, {"method": ["one"], "rate": axis, "seed": [0]})
            found = tuned(equal, "rate", "loss", measure)
            assert isinstance(found, Records)
            assert found.where(tuned=True).labels("rate") == rates[:1]


def test_cells_without_the_axis_are_all_run():
    plain = grid(run, {"method": ["one"], "seed": range(2)}, {"rate": 0.3})
    found = tuned([*plain, *cells(2)], "rate", "loss", measure)
    assert len(found) == 2 + 2 * (3 + 1)
    assert [one["tuned"] for one in found[:2]] == [True, True]
    assert found.where(rate=0.2, method="one", tuned=True).labels("seed") == [0, 1]
