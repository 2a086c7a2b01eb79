"""Plans against stragglers: the model's closed forms, and what must come out in clear cases."""

import csv

import pytest
import torch

from phalanx.coding import ErasureHead
from phalanx.planning import CodeOutlook, CodePlanner
from phalanx.stragglers import Bimodal, RecordedTrace, ShiftedExponential
from phalanx.training import Local


def find(plan, code, copies, wait_for=None):
    return next(
        one
        for one in plan
        if (one.code, one.redundancy, one.wait_for) == (code, float(copies), wait_for)
    )


@pytest.fixture(scope="module")
def plan():
    return CodePlanner(ShiftedExponential(1.0, 0.5), num_workers=12, max_redundancy=3).plan()


@pytest.mark.slow
def test_waiting_for_all_takes_the_expected_time(plan):
    alone = find(plan, "none", 1)
    assert alone.round_s == pytest.approx(
        ShiftedExponential(1.0, 0.5).expected_arrival(12, 12), rel=0.05
    )
    assert (alone.error, alone.bias, alone.rounds) == (0, 0, 1)
    assert alone.time_s == alone.round_s


@pytest.mark.slow
def test_the_error_is_that_of_the_codes(plan):
    """Without a code, 8 of 12 partitions count 12 / 8 times, and the others not at all."""
    ignoring = find(plan, "none", 1, 8)
    expected = (8 / 12 * 0.25 + 4 / 12) ** 0.5
    assert ignoring.error == pytest.approx(expected)
    assert ignoring.bias < 0.1
    assert ignoring.rounds == pytest.approx(1 + expected**2, rel=0.02)
    # Where two copies are lost by chance: see `expected_squared_error`; rescaled, a little more.
    lost = ErasureHead(12, copies=2, rescale=False).expected_squared_error(7)
    assert find(plan, "ErasureHead", 2, 7).error ** 2 == pytest.approx(lost, rel=0.5)


@pytest.mark.slow
def test_the_plan_is_sorted_and_more_copies_shorten_rounds(plan):
    reaching = [one for one in plan if one.reaches]
    assert list(plan[: len(reaching)]) == reaching
    assert plan.best == plan[0]
    assert [one.time_s for one in reaching] == sorted(one.time_s for one in reaching)
    lengths = [find(plan, "FractionalRepetition", copies).round_s for copies in (2, 3)]
    assert find(plan, "none", 1).round_s > lengths[0] > lengths[1]
    assert all(one.error == 0 for one in plan if one.wait_for is None)


@pytest.mark.slow
def test_work_that_costs_more_than_waiting_is_not_recommended():
    steady = ShiftedExponential(1.0, 0.0)
    best = CodePlanner(steady, num_workers=12, seconds_per_partition=1.0).plan()[0]
    assert (best.code, best.wait_for, best.round_s) == ("none", None, 2.0)


@pytest.mark.slow
def test_rare_slow_workers_are_worth_a_second_copy_if_noise_counts():
    delays = Bimodal(1.0, 100.0, slow_share=0.02)
    best = CodePlanner(delays, num_workers=12, noise=10.0).plan()[0]
    assert best.code != "none"
    assert best.round_s == 1.0


def test_workers_that_are_always_late_leave_a_bias(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(",".join(["1.0"] * 9 + ["10.0"] * 3))
    plan = CodePlanner(RecordedTrace(path), num_workers=12, num_rounds=40).plan()
    ignoring = [one for one in plan if one.code == "none" and one.wait_for == 8]
    assert ignoring[0].bias == pytest.approx((9 / 12 * (1 / 3) ** 2 + 3 / 12) ** 0.5)
    assert not ignoring[0].reaches
    assert plan[0].reaches
    assert plan[0].round_s < 10


def test_the_dead_are_not_waited_for(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(",".join(["1.0"] * 11 + ["inf"]))
    plan = CodePlanner(RecordedTrace(path), num_workers=12, num_rounds=3).plan()
    assert not [one for one in plan if one.code == "none" and one.wait_for is None]
    assert plan[0].error == 0
    path.write_text(",".join(["inf"] * 12))
    with pytest.raises(ValueError, match="delays must let some round end"):
        CodePlanner(RecordedTrace(path), num_workers=12, num_rounds=3).plan()


def test_a_plan_is_written_as_it_is(tmp_path):
    plan = CodePlanner(num_workers=6, max_redundancy=2, num_rounds=20).plan()
    plan.write(tmp_path / "plan.csv")
    with (tmp_path / "plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CodeOutlook._fields
    assert [float(row["time_s"]) for row in rows] == [one.time_s for one in plan]


def test_what_is_out_of_range_is_refused(subtests):
    for arguments, message in [
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"num_rounds": 0}, "num_rounds must be at least 1, got 0"),
        ({"num_workers": 3, "max_redundancy": 4}, "max_redundancy must be at most num_workers = 3"),
        ({"noise": -1.0}, "noise must be finite and at least 0, got -1.0"),
        ({"target_error": float("nan")}, "target_error must be finite"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            CodePlanner(**arguments)


def test_the_same_seed_gives_the_same_plan():
    planner = CodePlanner(num_workers=6, max_redundancy=2, num_rounds=20)
    assert planner.plan() == planner.plan()
    assert Local(delays=planner.delays).delays == planner.delays
    assert torch.tensor([one.round_s for one in planner.plan()]).isfinite().all()
