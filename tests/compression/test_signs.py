"""Votes and signs: the published examples."""

import math

import pytest
import torch

from phalanx.compression import ErrorFeedback, ScaledSign, SignSGD, TensorStates, simulate


def vote(rows, **fields):
    tensors = [{"w": torch.tensor(row)} for row in rows]
    means, _ = simulate(SignSGD(**fields), tensors, [TensorStates()] * len(rows))
    return means[0]["w"].tolist()


def test_the_majority_decides():
    assert vote([[3.0, -1.0], [1.0, -0.1], [-90.0, 2.0]]) == [1, -1]


def test_ties(subtests):
    """Packed bits up to 16 workers, sums of bytes and of integers beyond."""
    for num_workers in [2, 16, 18, 130]:
        with subtests.test(f"{num_workers}"):
            rows = [[(-1.0) ** worker, 1.0] for worker in range(num_workers)]
            assert vote(rows) == [0, 1]
            assert vote(rows, tie=1) == [1, 1]
            assert vote([*rows, [-1.0, -1.0]]) == [-1, 1]


def descend(compressor, gradient, start, rate, steps):
    point, state = start, compressor.init(start)
    for step in range(steps):
        message, state = compressor.update(gradient(point), state)
        point = point - rate(step) * compressor.decode(message)
    return point


def test_signs_alone_go_the_wrong_way_and_error_feedback_does_not():
    """A gradient of 4 once in four times, of -1 otherwise: x grows by signs, and falls in truth."""

    def run(compressor):
        source = torch.Generator().manual_seed(0)
        draw = lambda _: torch.where(torch.rand(1, generator=source) < 0.25, 4.0, -1.0)  # noqa: E731
        return descend(compressor, draw, torch.zeros(1), lambda _: 0.01, 1000).item()

    assert run(SignSGD()) > 1
    assert run(ErrorFeedback(ScaledSign())) < -1


def test_signs_alone_never_leave_a_line():
    """Karimireddy et al. 2019: f(x, y) = |x + y| / 2 + |x - y| from (1, 1)."""

    def gradient(point):
        total = 0.5 if point.sum() >= 0 else -0.5
        across = 1.0 if point[0] - point[1] >= 0 else -1.0
        return torch.tensor([total + across, total - across])

    rate = lambda step: 0.05 / math.sqrt(step + 1)  # noqa: E731
    stuck = descend(SignSGD(), gradient, torch.ones(2), rate, 1500)
    assert stuck.sum().item() == pytest.approx(2, abs=1e-4)
    free = descend(ErrorFeedback(ScaledSign()), gradient, torch.ones(2), rate, 1500)
    assert free.sum().abs() < 0.1
