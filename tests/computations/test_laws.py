"""What every computation promises, and what each computes, by a slow obvious reference."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from laws import concrete
from phalanx import computations
from phalanx.computations import (
    Broadcast,
    ClippedGradient,
    Computation,
    Gradient,
    LocalSteps,
    MixedPrecision,
    Objective,
    Samples,
)
from phalanx.randomness import generator, seeded

every = pytest.mark.parametrize("kind", concrete(computations, Computation))


def models():
    """Networks by what is special about them."""
    with seeded(5, "weights"):
        frozen = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        frozen[0].weight.requires_grad_(requires_grad=False)
        return {
            "plain": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
            "dropout": nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
            "group norm": nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)),
            "frozen": frozen,
            "vmap cannot take it": nn.Sequential(nn.Linear(6, 8), Branch(), nn.Linear(8, 3)),
        }


class Branch(nn.Module):
    """Looks at the values: `torch.func.vmap` cannot take it."""

    def forward(self, x):
        return x.relu() if x.sum().item() > 0 else x.tanh()


def some_samples(number=12, dtype=torch.float32):
    source = generator(1)
    inputs = torch.randn(number, 6, generator=source).to(dtype)
    return Samples(inputs, torch.randint(3, (number,), generator=source))


def of(model, dtype=torch.float32):
    """The objective of a model, and its parameters."""
    objective = Objective(model.to(dtype), cross_entropy)
    return objective, Broadcast(objective.layout.read(model))


def update(computation, model, samples, dtype=torch.float32):
    objective, broadcast = of(model, dtype)
    with seeded(7, "layers"):
        state = computation.init(objective.layout)
        return computation.compute(objective, broadcast, samples, state, generator(3))


def by_hand(model, samples):
    """The gradient of the mean loss, by autograd alone."""
    loss = cross_entropy(model(samples.inputs), samples.targets)
    found = torch.autograd.grad(loss, [one for one in model.parameters() if one.requires_grad])
    return torch.cat([one.reshape(-1) for one in found])


@every
def test_the_update_has_the_shape_and_dtype_of_the_parameters_and_is_repeatable(kind, subtests):
    for name in models():
        for dtype in (torch.float32, torch.float64):
            with subtests.test(name, dtype=dtype):
                objective, broadcast = of(models()[name], dtype)
                before = broadcast.parameters.clone()
                samples = some_samples(dtype=dtype)
                inputs = samples.inputs.clone()
                computation = kind()
                found = []
                for _ in range(2):  # two replicas
                    with seeded(7, "layers"):
                        state = computation.init(objective.layout)
                        made = computation.compute(
                            objective, broadcast, samples, state, generator(3)
                        )
                        found.append(made)
                assert found[0].update.equal(found[1].update)
                assert found[0].loss.equal(found[1].loss)
                assert found[0].update.shape == before.shape
                assert found[0].update.dtype == dtype
                assert found[0].update.isfinite().all()
                assert not found[0].update.requires_grad
                assert found[0].loss.shape == ()
                assert broadcast.parameters.equal(before)
                assert samples.inputs.equal(inputs)


@every
def test_many_partitions_at_once_are_those_one_by_one(kind):
    computation, (objective, broadcast) = kind(), of(models()["plain"])
    inputs, targets = some_samples(36)
    many = Samples(inputs.reshape(3, 12, 6), targets.reshape(3, 12))
    if not computation.vectorised:
        with pytest.raises(NotImplementedError, match="computes partitions one by one"):
            computation.compute_many(objective, broadcast, many)
        return
    close = {"rtol": 0.02, "atol": 0.004} if kind is MixedPrecision else {}  # 8 bits of bfloat16
    updates, losses = computation.compute_many(objective, broadcast, many)
    for place, one in enumerate(zip(*many, strict=True)):
        alone = computation.compute(objective, broadcast, Samples(*one), (), None)
        torch.testing.assert_close(updates[place], alone.update, **close)
        torch.testing.assert_close(losses[place], alone.loss, **close)


@every
def test_it_is_a_value(kind):
    assert pickle.loads(pickle.dumps(kind())) == kind()
    assert hash(kind()) == hash(kind())


def test_the_gradient_is_that_of_autograd(subtests):
    for name in ("plain", "group norm", "frozen", "vmap cannot take it"):
        with subtests.test(name):
            model, samples = models()[name], some_samples()
            found = update(Gradient(), model, samples)
            torch.testing.assert_close(found.update, by_hand(model, samples))


def test_batch_norm_uses_the_statistics_of_the_batch(subtests):
    for computation in (Gradient(), LocalSteps(2)):
        with subtests.test(f"{computation}"):
            model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
            mean = model[1].running_mean.clone()
            first, second = (update(computation, model, some_samples()) for _ in range(2))
            assert first.update.equal(second.update)
            assert model[1].running_mean.equal(mean)


@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_local_steps_are_those_of_a_loop_of_sgd(proximal, subtests):
    for num_steps in (1, 3, 5, 12):
        with subtests.test(num_steps=num_steps):
            model, samples = models()["plain"].double(), some_samples(dtype=torch.float64)
            computation = LocalSteps(num_steps, lr=0.3, proximal=proximal)
            found = update(computation, model, samples, torch.float64)
            start = [one.detach().clone() for one in model.parameters()]
            sgd, losses = torch.optim.SGD(model.parameters(), lr=0.3), []
            for places in torch.arange(12).tensor_split(num_steps):
                each = cross_entropy(
                    model(samples.inputs[places]), samples.targets[places], reduction="none"
                )
                losses.append(each.detach())
                pull = sum(
                    (one - first).square().sum()
                    for one, first in zip(model.parameters(), start, strict=True)
                )
                sgd.zero_grad()
                (each.mean() + proximal / 2 * pull).backward()
                sgd.step()
            way = [
                first - one.detach() for one, first in zip(model.parameters(), start, strict=True)
            ]
            torch.testing.assert_close(found.update, torch.cat([one.reshape(-1) for one in way]))
            torch.testing.assert_close(found.loss, torch.cat(losses).mean())


def test_one_local_step_of_rate_one_is_the_gradient():
    model, samples = models()["plain"], some_samples()
    found = update(LocalSteps(1, lr=1.0), model, samples).update
    torch.testing.assert_close(found, update(Gradient(), model, samples).update)


def clipped_by_hand(model, samples, max_norm):
    rows = [
        by_hand(model, Samples(one.unsqueeze(0), target.unsqueeze(0)))
        for one, target in zip(*samples, strict=True)
    ]
    return torch.stack([row * min(1.0, max_norm / row.norm().item()) for row in rows]).mean(dim=0)


def test_clipped_gradients_are_those_of_a_loop_over_samples(subtests):
    for name in ("plain", "group norm", "frozen", "vmap cannot take it"):
        for max_norm in (0.01, 1.0, 1e6):
            for microbatch in (1, 5, 12, 100):
                with subtests.test(name, max_norm=max_norm, microbatch=microbatch):
                    model, samples = models()[name], some_samples()
                    found = update(ClippedGradient(max_norm, microbatch=microbatch), model, samples)
                    expected = clipped_by_hand(model, samples, max_norm)
                    torch.testing.assert_close(found.update, expected)
                    plain = update(Gradient(), model, samples)
                    if name != "vmap cannot take it":  # its branch is one of the whole batch
                        torch.testing.assert_close(found.loss, plain.loss)
                        if max_norm == 1e6:
                            torch.testing.assert_close(found.update, plain.update)


@given(max_norm=st.floats(1e-3, 1e3), scale=st.floats(0.0, 1e4), seed=st.integers(0, 99))
def test_no_clipped_gradient_is_longer_than_it_may_be(max_norm, scale, seed):
    inputs = scale * torch.randn(5, 6, generator=generator(seed))
    samples = Samples(inputs, torch.randint(3, (5,), generator=generator(seed)))
    found = update(ClippedGradient(max_norm), models()["plain"], samples).update
    assert found.norm() <= max_norm * (1 + 1e-5)


def test_what_is_out_of_range_is_refused(subtests):
    cases = [
        (LocalSteps, {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        (LocalSteps, {"lr": 0.0}, "lr must be finite and above 0, got 0.0"),
        (LocalSteps, {"proximal": -1.0}, "proximal must be finite and at least 0, got -1.0"),
        (ClippedGradient, {"max_norm": 0.0}, "max_norm must be finite and above 0, got 0.0"),
        (ClippedGradient, {"microbatch": 0}, "microbatch must be at least 1, got 0"),
    ]
    for kind, arguments, rule in cases:
        refused = pytest.raises(ValueError, match=rule)
        with subtests.test(kind=kind, arguments=arguments), refused:
            kind(**arguments)
    with pytest.raises(ValueError, match="num_steps must be at most the 12 samples per worker"):
        update(LocalSteps(13), models()["plain"], some_samples())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_whose_square_overflows_is_clipped_like_any_other(dtype):
    objective = Objective(nn.Linear(3, 1, bias=False).to(dtype), lambda out, _: out.mean())
    for exponent in (-60, 60, 100):
        inputs = torch.tensor([[2.0, -1.0, 2.0]], dtype=dtype) * 2.0**exponent
        samples = Samples(inputs, torch.zeros(1))
        broadcast = Broadcast(torch.zeros(3, dtype=dtype))
        update = ClippedGradient(2.0**-70).compute(objective, broadcast, samples, (), None).update
        wanted = inputs[0] / (3 * 2.0**exponent) * 2.0**-70
        torch.testing.assert_close(update * 2.0**70, wanted * 2.0**70)
