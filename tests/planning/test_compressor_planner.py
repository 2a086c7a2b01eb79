"""Compressors on links: what is sent, by formulas; what is advised, on links of every kind."""

import math

import pytest
import torch
from torch import nn

from phalanx.communication import Link
from phalanx.compression import (
    QSGD,
    ErrorFeedback,
    HalfPrecision,
    PowerSGD,
    RandomK,
    ScaledSign,
    TernGrad,
    TopK,
)
from phalanx.planning import CompressorPlanner
from phalanx.planning.compressor_planner import CompressorOutlook

ROWS, COLUMNS = 64, 96
DIM = ROWS * COLUMNS + ROWS


SLOW = Link(rate=1e6)


def outlooks(*compressors, link=SLOW, **options):
    options = {"num_workers": 4, "num_rounds": 1, **options}
    model = nn.Linear(COLUMNS, ROWS)
    inputs = torch.randn(8, COLUMNS, generator=torch.Generator().manual_seed(0))
    planner = CompressorPlanner(link, compressors=compressors, **options)
    found = planner.plan(model, inputs, torch.zeros(8, dtype=torch.int64))
    assert all(value.grad is None for value in model.parameters())
    return {one.compressor: one for one in found}


def ring(workers, num_bytes):
    return 2 * (workers - 1) / workers * num_bytes


def test_bytes_are_those_of_the_rings(subtests):
    for workers in [2, 5]:
        with subtests.test(f"{workers}"):
            signs = math.ceil(ROWS * COLUMNS / 8) + 4 + ROWS // 8 + 4
            flags = workers - 1
            kept = 8 + 4 * round(0.1 * ROWS * COLUMNS) + 8 + 4 * round(0.1 * ROWS)
            factors = 4 * (2 * (ROWS + COLUMNS) + ROWS)
            expected = {
                HalfPrecision(): (ring(workers, 2 * DIM) + flags, 2 * DIM, None),
                ScaledSign(): (
                    (workers - 1) * signs + flags,
                    signs,
                    math.ceil(2 * 4 * DIM / signs),
                ),
                RandomK(ratio=0.1): (ring(workers, kept - 16) + flags, kept - 16, None),
                PowerSGD(rank=2): (ring(workers, factors) + flags, factors, None),
                TernGrad(): (ring(workers, DIM + 16) + flags, DIM + 16, None),
            }
            found = outlooks(*expected, num_workers=workers)
            assert found["none"].wire_bytes == ring(workers, 4 * DIM)
            for compressor, (wire, payload, most) in expected.items():
                one = found[str(compressor)]
                assert one.wire_bytes == pytest.approx(wire)
                assert one.payload_bytes == payload
                assert one.max_workers == most
                assert one.collective == ("all-gather" if most else "all-reduce")


def test_gathered_messages_lose_from_twice_their_factor_of_workers_on():
    """A compressor of factor c wins by bytes if c > n / 2, and only then."""
    most = outlooks(QSGD())[str(QSGD())].max_workers
    for workers, wins in ((most - 1, True), (most + 1, False)):
        found = outlooks(QSGD(), num_workers=workers)
        assert (found[str(QSGD())].wire_bytes < found["none"].wire_bytes) == wins
        assert (found[str(QSGD())].break_even > 0) == wins


def test_hops_take_the_latency_and_gathers_half_of_them():
    far = Link(rate=1e15, latency_s=10.0)
    slow = outlooks(TopK(), link=far, num_workers=5)
    assert slow["none"].step_s == pytest.approx(160, rel=0.05)  # 4 (n - 1)
    assert slow[str(TopK())].step_s == pytest.approx(160, rel=0.05)  # flag and messages
    factors = outlooks(PowerSGD(), link=far)[str(PowerSGD())]
    assert factors.step_s == pytest.approx(60 + 2 * 120, rel=0.05)
    assert factors.num_hops == 6 + 2 * 12


def test_compression_pays_below_the_bandwidth_where_both_are_equal():
    found = outlooks(ErrorFeedback(TopK()), link=Link(rate=1e4, latency_s=0.01))
    dense, sparse = found["none"], found[str(ErrorFeedback(TopK()))]
    assert sparse.step_s < dense.step_s / 10
    assert 0 < sparse.break_even < math.inf
    at = sparse.break_even
    even, slower, faster = (Link(at * factor, latency_s=0.01) for factor in (1, 1 / 2, 2))
    assert sparse.at(even) == pytest.approx(dense.at(even))
    assert sparse.at(slower) < dense.at(slower)
    assert sparse.at(faster) > dense.at(faster)
    fast = outlooks(ErrorFeedback(TopK()), link=Link(rate=1e15))
    assert next(iter(fast)) == "none"  # sorted: on a link without end nothing pays


def test_an_outlook_on_its_own_link_is_its_step():
    link = Link(rate=3e7)
    for one in outlooks(HalfPrecision(), link=link).values():
        assert one.at(link) == one.step_s > one.own_s > one.overhead_s


def test_what_is_out_of_range_is_refused(subtests):
    for arguments, message in [
        ({"num_workers": 1}, "num_workers must be at least 2, got 1"),
        ({"num_rounds": 0}, "num_rounds must be at least 1, got 0"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            CompressorPlanner(**arguments)


def test_models_without_a_gradient_are_refused():
    target = torch.zeros(2, dtype=torch.int64)
    frozen = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="model must have parameters that require gradients"):
        CompressorPlanner().plan(frozen, torch.ones(2, 3), target)
    with pytest.raises(ValueError, match="model must have finite gradients"):
        CompressorPlanner().plan(nn.Linear(3, 2), torch.full((2, 3), torch.nan), target)


def test_no_saving_never_pays_and_no_cost_always_does():
    def one(wire, own):
        return CompressorOutlook("x", "all-reduce", 1, wire, 0, 0.0, own, 0.0, 0.0, None)

    from phalanx.planning.compressor_planner import _break_even

    assert _break_even(one(10.0, 1.0), one(10.0, 0.5), Link()) == 0
    assert _break_even(one(5.0, 0.5), one(10.0, 0.5), Link()) == math.inf
