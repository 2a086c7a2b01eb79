"""Delay models against their closed forms, and what every model promises."""

import math
import pickle

import pytest
import torch

from laws import concrete
from phalanx import stragglers
from phalanx.stragglers import (
    Bimodal,
    Bursty,
    DelayModel,
    Pareto,
    RecordedTrace,
    ShiftedExponential,
)

DRAWN = [kind() for kind in concrete(stragglers, DelayModel) if kind is not RecordedTrace]
every_model = pytest.mark.parametrize("model", DRAWN, ids=repr)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@every_model
def test_delays_are_seconds_that_a_generator_determines(model):
    drawn = model.draw(7, 5, seeded())
    assert drawn.shape == (7, 5)
    assert drawn.dtype == torch.float64
    assert (drawn >= 0).all()
    assert drawn.equal(model.draw(7, 5, seeded()))
    assert model.draw(0, 5).shape == (0, 5)
    assert pickle.loads(pickle.dumps(model)) == model


@pytest.mark.parametrize(
    "model",
    [ShiftedExponential(1.0, 0.5), ShiftedExponential(0.0, 2.0), Pareto(1.0, 3.0)],
    ids=repr,
)
def test_order_statistics_follow_the_closed_form(model, subtests):
    for num_workers in [10, 100, 1000]:
        with subtests.test(num_workers=num_workers):
            arrivals = (
                model.draw(400_000 // num_workers + 2000, num_workers, seeded(1)).sort(dim=1).values
            )
            for share in (0.1, 0.5, 0.8, 0.9):
                rank = int(share * num_workers)
                expected = model.expected_arrival(rank, num_workers)
                assert arrivals[:, rank - 1].mean().item() == pytest.approx(expected, rel=0.02)


def test_the_last_of_many_exponentials_is_harmonic():
    model = ShiftedExponential(shift_s=0.0, mean_s=1.0)
    harmonic = sum(1 / number for number in range(1, 31))
    assert model.expected_arrival(30, 30) == pytest.approx(harmonic)
    assert model.expected_arrival(15, 30) == pytest.approx(0.677, abs=5e-4)  # H_30 - H_15


def test_heavy_tails_have_no_mean():
    assert Pareto(shape=1.0).expected_arrival(10, 10) == math.inf
    assert Pareto(shape=1.0).expected_arrival(9, 10) < math.inf
    assert Pareto(2.0, 2.5).draw(400, 1000, seeded()).mean().item() == pytest.approx(
        2.0 * 2.5 / 1.5, rel=0.02
    )


def test_slow_workers_are_as_many_as_said():
    drawn = Bimodal(fast_s=1.0, slow_s=4.0, slow_share=0.25).draw(500, 400, seeded())
    assert set(drawn.unique().tolist()) == {1.0, 4.0}
    assert (drawn == 4.0).double().mean().item() == pytest.approx(0.25, rel=0.02)


def test_bursts_have_their_share_and_length_from_the_first_round_on():
    model = Bursty(base=Bimodal(slow_share=0.0), enter=0.05, leave=0.2, slowdown=3.0)
    slow = model.draw(400, 5000, seeded()) == 3.0
    assert slow.double().mean().item() == pytest.approx(0.2, rel=0.02)
    assert slow[0].double().mean().item() == pytest.approx(0.2, abs=0.02)
    starts = (slow[1:] & ~slow[:-1]).sum().item() + slow[0].sum().item()
    assert slow.sum().item() / starts == pytest.approx(1 / 0.2, rel=0.05)


def test_a_trace_is_read_round_by_round_and_starts_again(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("# seconds\n1,2.5,inf\n3,4,5\n")
    drawn = RecordedTrace(path).draw(3, 3)
    assert drawn.tolist() == [[1.0, 2.5, math.inf], [3.0, 4.0, 5.0], [1.0, 2.5, math.inf]]
    assert RecordedTrace(path).draw(1, 2).tolist() == [[1.0, 2.5]]
    with pytest.raises(ValueError, match="must hold a column for each of 4 workers, got 3"):
        RecordedTrace(path).draw(1, 4)


def test_a_trace_holds_times(tmp_path, subtests):
    for content in ["1,-2\n", "1,nan\n", "1,soon\n"]:
        with subtests.test(content=content):
            path = tmp_path / "trace.csv"
            path.write_text(content)
            with pytest.raises(ValueError):  # noqa: PT011 - NumPy says the rest
                RecordedTrace(path).draw(1, 2)
            with pytest.raises(FileNotFoundError):
                RecordedTrace(tmp_path / "nowhere.csv").draw(1, 1)


def test_bad_arguments_are_refused(subtests):
    cases = [
        (ShiftedExponential, {"shift_s": -1.0}, "shift_s must be finite and at least 0, got -1.0"),
        (ShiftedExponential, {"mean_s": math.inf}, "mean_s must be finite and at least 0, got inf"),
        (Pareto, {"shape": 0.0}, "shape must be finite and above 0, got 0.0"),
        (Bimodal, {"slow_share": 1.5}, "slow_share must be from 0 to 1, got 1.5"),
        (Bursty, {"slowdown": 0.5}, "slowdown must be finite and at least 1, got 0.5"),
        (Bursty, {"enter": 0.0, "leave": 0.0}, "enter or leave must be above 0"),
    ]
    for kind, arguments, rule in cases:
        refused = pytest.raises(ValueError, match=rule)
        with subtests.test(kind=kind, arguments=arguments, rule=rule), refused:
            kind(**arguments)


def test_ranks_are_those_of_workers(subtests):
    for rank in [0, 11]:
        with subtests.test(rank=rank):
            for model in (ShiftedExponential(), Pareto()):
                with pytest.raises(
                    ValueError, match=f"rank must be from 1 to num_workers = 10, got {rank}"
                ):
                    model.expected_arrival(rank, 10)
