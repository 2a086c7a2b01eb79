"""Attackers: projection, model replacement, and what engines make of poisoned training."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import TensorDataset

import phalanx
from phalanx.aggregation import Mean
from phalanx.attacks import FixedWorkers, PeriodicWorkers
from phalanx.backdoors import (
    Backdoor,
    PoisonedSteps,
    projected,
    replacement_boost,
)
from phalanx.computations import Broadcast, Gradient, LocalSteps, Objective, Samples
from phalanx.randomness import generator
from phalanx.training import Local, Ray


def a_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def some_data(number=60, seed=1):
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, 4, generator=draws)
    return TensorDataset(inputs, torch.randint(3, (number,), generator=draws))


NOTHING = Samples(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))


def poisoned(broadcast, **settings):
    steps = PoisonedSteps(*some_data(seed=2).tensors, **settings)
    source = torch.Generator().manual_seed(0)
    return steps.compute(Objective(a_model(), cross_entropy), broadcast, NOTHING, (), source)


def start():
    return Broadcast(Objective(a_model(), cross_entropy).layout.read(a_model()))


@given(radius=st.floats(1e-6, 1e6), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 999))
def test_projection_ends_in_the_ball_and_leaves_alone_what_is_inside(radius, scale, seed):
    draws = torch.Generator().manual_seed(seed)
    centre = torch.randn(20, generator=draws)
    point = centre + scale * torch.randn(20, generator=draws)
    found = projected(point, centre, radius)
    rounding = 1e-6 * (radius + centre.norm())
    assert (found.double() - centre.double()).norm() <= radius * (1 + 1e-6) + rounding
    if (point.double() - centre.double()).norm() <= radius:
        assert found.equal(point)


def test_pgd_stays_in_the_ball_and_a_large_ball_is_the_black_box():
    free = poisoned(start(), epochs=5, lr=0.5, momentum=0.5)
    length = free.update.norm()
    for project_every in (1, 3, 1000):
        settings = {"epochs": 5, "lr": 0.5, "momentum": 0.5, "project_every": project_every}
        for share in (0.01, 0.3, 0.9):
            held = poisoned(start(), radius=share * length.item(), **settings)
            assert held.update.norm() <= share * length * (1 + 1e-5)
            assert held.update.norm() >= share * length * 0.5
        loose = poisoned(start(), radius=1e3, **settings)
        assert loose.update.equal(free.update)
        assert loose.loss == free.loss


def test_one_step_over_all_poison_is_the_gradient():
    data = some_data(seed=2)
    found = poisoned(start(), epochs=1, lr=1.0, batch_size=len(data))
    objective = Objective(a_model(), cross_entropy)
    gradient, _ = objective.gradient(start().parameters, *data.tensors)
    assert found.update.allclose(gradient, atol=1e-6)


def trained(attack, byzantine, compute, engine=None, steps=1, num_workers=4, model=None):
    model = a_model() if model is None else model
    phalanx.train(
        model,
        some_data(),
        rule=Mean(),
        num_workers=num_workers,
        compute=compute,
        attack=attack,
        byzantine=byzantine,
        optimizer=lambda parameters: SGD(parameters, lr=1.0),
        steps=steps,
        batch_size=4 * num_workers,
        engine=engine or Local(),
        progress=False,
    )
    return torch.cat([one.detach().flatten() for one in model.parameters()])


class Frozen(nn.Module):
    """A model whose honest updates are zero: the loss does not depend on it."""

    def __init__(self):
        super().__init__()
        self.inner = a_model()

    def forward(self, inputs):
        return self.inner(inputs) * (inputs[:, :1] > 1e3)


def test_replacement_makes_the_mean_the_attackers_model():
    data = TensorDataset(some_data(seed=2).tensors[0] + 1e4, some_data(seed=2).tensors[1])
    steps = PoisonedSteps(*data.tensors, lr=1e-9, epochs=3)
    objective = Objective(Frozen(), cross_entropy)
    before = objective.layout.read(Frozen())
    for attackers in ([2], [0, 3]):
        boost = replacement_boost([1.0] * 4, attackers)
        attack = Backdoor(steps, boost=4.0)
        after = trained(attack, FixedWorkers(attackers), Gradient(), model=Frozen())
        moved = (before - after).norm()
        assert boost == 4 / len(attackers)
        assert moved > 0
        if len(attackers) == 1:
            source = generator(0, "computation", 0, 2)
            own = steps.compute(objective, Broadcast(before), NOTHING, (), source)
            assert after.allclose(before - own.update, rtol=1e-5, atol=1e-5 * moved.item())


def test_the_boost_follows_the_weights():
    assert replacement_boost([1, 1, 1, 1]) == 4.0
    assert replacement_boost([30, 10, 60], attackers=[1]) == 10.0
    assert replacement_boost([30, 10, 60], attackers=[0, 1]) == 2.5
    with pytest.raises(ValueError, match="attackers must count in the mean"):
        replacement_boost([0, 1], [0])
    with pytest.raises(ValueError, match="num_samples"):
        replacement_boost([-1, 2], [1])
    shares = [0.3, 0.1, 0.6]
    own = torch.randn(5)
    sent = Backdoor(PoisonedSteps(*some_data().tensors), replacement_boost(shares, [1]))
    rows = torch.zeros(3, 5)
    rows[1] = sent(torch.zeros(2, 5), 1, own=own[None])
    assert Mean()(rows, weights=shares).allclose(own, atol=1e-6)


def test_honest_workers_and_rounds_are_as_without_the_attack():
    attack = Backdoor(PoisonedSteps(*some_data(seed=2).tensors, radius=0.1))
    for compute in (Gradient(), LocalSteps(2, 0.1)):
        plain = trained(None, None, compute, steps=1)
        asleep = trained(attack, PeriodicWorkers(every=5, first=1), compute, steps=1)
        awake = trained(attack, PeriodicWorkers(every=5), compute, steps=1)
        assert plain.equal(asleep)
        assert not plain.allclose(awake)


def test_runs_repeat_to_the_bit_and_resume(tmp_path):
    attack = Backdoor(PoisonedSteps(*some_data(seed=2).tensors, radius=0.1), boost=4.0)
    options = {"rule": Mean(), "num_workers": 4, "compute": LocalSteps(2, 0.1), "attack": attack}
    options |= {"byzantine": PeriodicWorkers(2), "batch_size": 16, "progress": False}
    models = [a_model() for _ in range(3)]
    phalanx.train(models[0], some_data(), steps=6, **options)
    phalanx.train(models[1], some_data(), steps=3, out=tmp_path, **options)
    phalanx.train(models[2], some_data(), steps=6, out=tmp_path, resume=True, **options)
    for one, other in zip(models[0].parameters(), models[2].parameters(), strict=True):
        assert one.equal(other)
    other = replace(attack, boost=2.0)
    with pytest.raises(ValueError, match="attack"):
        phalanx.train(
            a_model(),
            some_data(),
            steps=8,
            out=tmp_path,
            resume=True,
            **options | {"attack": other},
        )


@pytest.mark.slow
def test_engines_agree(cluster):
    attack = Backdoor(PoisonedSteps(*some_data(seed=2).tensors, radius=0.1), boost=4.0)
    found = [
        trained(attack, PeriodicWorkers(2), LocalSteps(2, 0.1), engine=engine, steps=3)
        for engine in (Local(chunk_size=1), Ray())
    ]
    assert found[0].equal(found[1])


def test_wrong_arguments_are_named():
    data = some_data().tensors
    for wrong in ({"radius": 0.0}, {"lr": 0.0}, {"epochs": 0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PoisonedSteps(*data, **wrong)
    with pytest.raises(ValueError, match="inputs must be as many as targets"):
        PoisonedSteps(data[0], data[1][1:])
    with pytest.raises(ValueError, match="boost"):
        Backdoor(PoisonedSteps(*data), boost=float("nan"))
