"""Adaptive norm clipping: the radius follows a quantile, and no minority carries it away."""

import math

import pytest
import torch

from phalanx.aggregation import AdaptiveNormClipping, CenteredClipping, Krum, Mean, NormClipping
from phalanx.aggregation.mixtures import gather


def rows(step, num_workers=10, dim=50):
    draws = torch.Generator().manual_seed(step)
    return torch.randn(num_workers, dim, generator=draws) * torch.rand(
        num_workers, 1, generator=draws
    )


def radii(rule, rounds, messages=rows):
    state, found = rule.init(50), []
    for step in range(rounds):
        answer, state = rule.update(messages(step), state)
        found.append((answer, state[-1].item()))
    return found


def test_the_radius_follows_the_quantile():
    for quantile in (0.2, 0.5, 0.8):
        rule = AdaptiveNormClipping(quantile=quantile) >> Mean()
        last = radii(rule, 200)[-1][1]
        norms = torch.cat([rows(step).norm(dim=1) for step in range(150, 200)])
        assert (norms <= last).float().mean().item() == pytest.approx(quantile, abs=0.15)


def test_a_small_update_is_left_as_it_is_and_a_long_one_moves_the_radius_little():
    rule = AdaptiveNormClipping(quantile=0.5, rate=0.2) >> Mean()

    def attacked(step):
        messages = rows(step)
        messages[0] *= 1e6
        return messages

    for (_, ours), (_, theirs) in zip(radii(rule, 30), radii(rule, 30, attacked), strict=True):
        assert 0.3 < ours / theirs < 3
    alone = gather(rows(0), origin=True).geometry
    assert NormClipping(1e9).mix(alone, 0, torch.Generator()).equal(torch.eye(10).double())
    by_mean = AdaptiveNormClipping("mean") >> Mean()
    assert by_mean(attacked(0)).norm() > 1e3  # said to be for comparison only


def test_one_step_is_the_published_one():
    rule = AdaptiveNormClipping(quantile=0.5, rate=0.2) >> Mean()
    messages = torch.eye(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    state = rule.init(4)
    answer, state = rule.update(messages, state)  # from the median of the first round, 2
    assert answer.value.tolist() == pytest.approx([0.25, 0.5, 0.5, 0.5])
    assert state[-1].item() == pytest.approx(2.0)  # half are within
    _, state = rule.update(messages * 10, state)
    assert state[-1].item() == pytest.approx(2 * math.exp(0.2 * 0.5))


def test_memory_stands_beside_that_of_the_rule_and_other_parts():
    chain = AdaptiveNormClipping() >> NormClipping(3.0) >> AdaptiveNormClipping(quantile=0.2)
    for rule in (chain >> CenteredClipping(), chain >> Krum(1), chain >> Mean()):
        state = rule.init(50)
        for step in range(3):
            _, state = rule.update(rows(step), state)
        assert len(state) == len(rule.init(50))
        assert state[-2].item() != state[-1].item()
        assert all(one.isfinite().all() for one in state)


def test_zeros_do_not_fix_the_radius_at_nothing():
    rule = AdaptiveNormClipping() >> Mean()
    state = rule.init(3)
    answer, state = rule.update(torch.zeros(4, 3), state)
    assert answer.value.equal(torch.zeros(3))
    assert state[-1] > 0
