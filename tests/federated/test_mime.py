"""Mime: one local step of everything is one centralised step, whatever the optimizer."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset

from federated.federations import federation, linear, run, weights
from phalanx.federated import (
    FrozenAdagrad,
    FrozenAdam,
    FrozenMomentum,
    FrozenRMSProp,
    FrozenSGD,
    FrozenTorch,
    Mime,
    MimeLite,
)
from phalanx.randomness import seeded

BASES = [
    FrozenSGD(),
    FrozenMomentum(0.8),
    FrozenRMSProp(),
    FrozenAdagrad(),
    FrozenAdam(),
    FrozenTorch(partial(torch.optim.SGD, momentum=0.9)),
    FrozenTorch(partial(torch.optim.Adam, weight_decay=0.1)),
]


def centralised(base, clients, rounds, lr):
    """Steps on the pooled data; statistics are updated at the parameters before each."""
    inputs, targets = map(torch.stack, zip(*ConcatDataset(clients), strict=True))
    with seeded(0, "weights"):
        model = linear()
    values = list(model.parameters())
    statistics = base.init(torch.cat([one.detach().flatten() for one in values]))
    for _ in range(rounds):
        parts = torch.autograd.grad(cross_entropy(model(inputs), targets), values)
        gradient = torch.cat([one.flatten() for one in parts])
        point = torch.cat([one.detach().flatten() for one in values])
        moved = base.step(point, gradient, statistics, lr)
        statistics = base.update(point, gradient, statistics)
        nn.utils.vector_to_parameters(moved, values)
    return torch.cat([one.detach().flatten() for one in values])


def test_one_local_step_of_all_samples_is_the_centralised_step(subtests):
    clients = federation()
    for base in BASES:
        with subtests.test(repr(base)):
            one = {"base": base, "lr": 0.05, "num_steps": 1, "batch_size": 100}
            expected = centralised(base, clients, 4, 0.05)
            for algorithm in (Mime(**one), Mime(control="stale", **one)):
                # A stale variate cancels: g(w) - g(w) + c is c of the round before.
                if algorithm.control == "fresh":
                    found = weights(run(algorithm, clients, rounds=4))
                    assert torch.allclose(found, expected, rtol=0, atol=2e-5)
            if isinstance(base, FrozenSGD | FrozenMomentum):  # linear: the mean of steps is a step
                found = weights(run(MimeLite(**one), clients, rounds=4))
                assert torch.allclose(found, expected, rtol=0, atol=2e-5)


def test_one_client_needs_no_correction():
    client = federation((20,))
    common = {"base": FrozenAdam(), "lr": 0.02, "batch_size": 100, "num_steps": 4}
    one, other = run(Mime(**common), client), run(MimeLite(**common), client)
    assert torch.allclose(weights(one), weights(other), rtol=0, atol=1e-5)


def test_a_torch_optimizer_steps_as_it_would():
    """From statistics of its own making, and leaves them as they are."""
    for make in (partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam, torch.optim.RMSprop):
        base, point = FrozenTorch(make), torch.zeros(3)
        parameter = nn.Parameter(point.clone())
        optimizer = make([parameter], lr=0.1)
        statistics = base.init(point)
        for gradient in (torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.0, 1.0])):
            before = parameter.detach().clone()
            moved = base.step(before, gradient, statistics, 0.1)
            many = base.step(before.expand(2, 3), gradient.expand(2, 3), statistics, 0.1)
            statistics = base.update(before, gradient, statistics)
            parameter.grad = gradient
            optimizer.step()
            assert torch.allclose(moved, parameter.detach(), atol=1e-6)
            assert torch.allclose(many, moved.expand(2, 3), atol=1e-6)
