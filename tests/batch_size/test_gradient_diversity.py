"""Gradient diversity: exact, estimated while training, and what is made of it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import TensorDataset

import phalanx
from batch_size.diversity_cases import observed
from ddp.ranks import Ranks
from phalanx.batch_size import (
    DiversityMonitor,
    GradientDiversity,
    Spread,
    gradient_diversity,
    squared_norm,
)
from phalanx.coding import DracoRepetition
from phalanx.compression import TopK
from phalanx.data import Digits, IidPartitioner
from phalanx.models import MLP, Softmax
from phalanx.ordering import PerClient
from phalanx.randomness import seeded
from phalanx.transforms import Compressed, WorkerMomentum


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs, targets):
    """A linear model without weights, whose per-sample gradients are `-2 target * input`."""
    model = nn.Linear(inputs.shape[1], 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, TensorDataset(inputs, targets.view(-1, 1))


def reference(model, dataset, loss):
    """The definition, one plain backward pass a sample."""
    rows = []
    for x, y in zip(*dataset.tensors, strict=True):
        model.zero_grad()
        loss(model(x.unsqueeze(0)), y.unsqueeze(0)).backward()
        rows.append(torch.cat([value.grad.flatten() for value in model.parameters()]).double())
    model.zero_grad()
    return torch.stack(rows)


@pytest.fixture(scope="module")
def digits():
    inputs, targets = Digits().load().train.tensors
    with seeded(0, "weights"):
        return MLP((1, 8, 8), 10, hidden=[12]), TensorDataset(inputs[:200], targets[:200])


def test_it_is_what_the_definition_says(digits):
    model, dataset = digits
    rows = reference(model, dataset, cross_entropy)
    found = gradient_diversity(model, dataset, num_samples=None)
    expected = len(rows) * rows.square().sum() / rows.sum(dim=0).square().sum()
    assert found.num_samples == 200
    assert found.value == pytest.approx(expected.item(), rel=1e-5)
    assert found.mean_square == pytest.approx(rows.square().sum().item() / 200, rel=1e-5)
    # Relation to the noise scale: one plus the trace of the covariance over the squared mean.
    noise = (rows - rows.mean(dim=0)).square().sum() / 200 / rows.mean(dim=0).square().sum()
    assert found.value == pytest.approx(1 + noise.item(), rel=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 500])
def test_the_chunk_size_does_not_matter(digits, chunk_size):
    whole = gradient_diversity(*digits, num_samples=150, seed=3)
    chunked = gradient_diversity(*digits, num_samples=150, seed=3, chunk_size=chunk_size)
    assert chunked == pytest.approx(whole, rel=1e-6)


def test_equal_gradients_have_a_diversity_of_one_and_orthogonal_ones_their_number():
    equal = linear(torch.ones(7, 5), torch.ones(7))
    assert gradient_diversity(*equal, mse_loss).value == pytest.approx(1.0)
    orthogonal = linear(torch.eye(9), torch.ones(9))
    assert gradient_diversity(*orthogonal, mse_loss).value == pytest.approx(9.0)


def test_a_mean_of_zero_and_no_gradients_at_all():
    opposite = linear(torch.ones(2, 3), torch.tensor([1.0, -1.0]))
    assert gradient_diversity(*opposite, mse_loss).value == math.inf
    solved = linear(torch.ones(2, 3), torch.zeros(2))
    assert math.isnan(gradient_diversity(*solved, mse_loss).value)


@given(
    samples=st.integers(1, 8),
    dim=st.integers(1, 5),
    seed=st.integers(0, 999),
    scale=st.floats(0.1, 9),
)
def test_it_is_at_least_one_and_does_not_depend_on_the_scale(samples, dim, seed, scale):
    model, dataset = linear(normal(samples, dim, seed=seed), 1 + normal(samples, seed=seed + 1))
    value = gradient_diversity(model, dataset, mse_loss).value
    assert value >= 1 - 1e-6

    def scaled(outputs, targets):
        return scale * mse_loss(outputs, targets)

    assert gradient_diversity(model, dataset, scaled).value == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_identity_by_enumeration(batch):
    """All draws with replacement of `batch` of 4 samples: the mean distance after the step."""
    model, dataset = linear(normal(4, 3), normal(4, seed=1))
    rows = reference(model, dataset, mse_loss)
    found = gradient_diversity(model, dataset, mse_loss)
    start, goal, gamma = normal(3, seed=2).double(), normal(3, seed=3).double(), 0.17
    draws = list(itertools.product(range(4), repeat=batch))
    after = [(start - gamma * rows[list(draw)].sum(dim=0) - goal).square().sum() for draw in draws]
    ahead = (rows.mean(dim=0) @ (start - goal)).item()
    noise = (1 + (batch - 1) / found.value) * found.mean_square
    expected = (start - goal).square().sum() - batch * (2 * gamma * ahead - gamma**2 * noise)
    assert torch.stack(after).mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_sample_tells_of_all_data_once_its_noise_is_taken_off():
    splits = Digits().load()
    with seeded(0, "weights"):
        model = Softmax((1, 8, 8), 10)
    whole = gradient_diversity(model, splits.train, num_samples=None)
    some = [gradient_diversity(model, splits.train, num_samples=40, seed=seed) for seed in range(9)]
    extrapolated = sorted(one.extrapolated for one in some)[4]
    assert extrapolated == pytest.approx(whole.extrapolated, rel=0.25)
    assert all(one.value < 40 for one in some)
    assert math.isnan(GradientDiversity(1, 1.0, 1.0).extrapolated)
    assert GradientDiversity(10, 10.0, 1.0).extrapolated == math.inf  # nothing but noise


def test_batch_normalisation_is_warned_of_and_not_changed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="a sample has no gradient of its own"):
        found = gradient_diversity(model, Digits().load().train, num_samples=30)
    assert found.value > 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_parameters_do_not_count(digits):
    model, dataset = digits
    head = MLP((1, 8, 8), 10, hidden=[12])
    head.load_state_dict(model.state_dict())
    for value in list(head.parameters())[:2]:
        value.requires_grad_(False)
    rows = reference(model, dataset, cross_entropy)[:, -130:]  # the last layer's
    found = gradient_diversity(head, dataset, num_samples=None)
    assert found.mean_square == pytest.approx(rows.square().sum().item() / 200, rel=1e-5)


@pytest.mark.parametrize("name", ["num_samples", "chunk_size"])
def test_sizes_below_one_are_refused(digits, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        gradient_diversity(*digits, **{name: 0})


def test_the_monitor_comes_within_a_tenth_of_the_exact_value(digits):
    model, dataset = digits
    rows = reference(model, dataset, cross_entropy)
    exact = gradient_diversity(model, dataset, num_samples=None).value
    monitor, spread = DiversityMonitor(num_workers=4, samples=8, decay=0.999), Spread()
    source = torch.Generator().manual_seed(0)
    for _ in range(2000):
        drawn = torch.randint(len(rows), (4, 8), generator=source)
        own = rows[drawn].mean(dim=1)
        spread = monitor.update(spread, squared_norm(own) / 4, squared_norm([own.mean(dim=0)]))
    assert monitor.diversity(spread) == pytest.approx(exact, rel=0.1)
    assert spread.weight == pytest.approx(1 - 0.999**2000)
    assert spread.signal / spread.weight == pytest.approx(
        rows.mean(dim=0).square().sum().item(), rel=0.1
    )


def test_the_monitor_says_when_it_does_not_know():
    monitor = DiversityMonitor(num_workers=2, samples=1)
    assert monitor.diversity(Spread()) is None
    assert monitor.diversity(monitor.update(Spread(), 4.0, 1.0)) is None  # less than noise alone
    assert monitor.diversity(monitor.update(Spread(), 1.0, 1.0)) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 1}, "num_workers must be at least 2"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
    ],
    ids=str,
)
def test_monitors_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiversityMonitor(**{"num_workers": 2, "samples": 1, **options})


def run(steps=8, **options):
    splits = Digits().load()
    with seeded(0, "weights"):
        model = MLP((1, 8, 8), 10, hidden=[8])
    options = {"num_workers": 5, "batch_size": 40, "measure_diversity": True, **options}
    return phalanx.train(model, splits.train, steps=steps, checkpoint_every=3, **options)


def test_a_run_writes_it_into_its_metrics_and_is_not_changed_by_it():
    measured, plain = run(), run(measure_diversity=False)
    found = [entry["gradient_diversity"] for entry in measured.rounds]
    assert all(one is None or one >= 1 for one in found)
    assert any(one is not None for one in found)
    assert "gradient_diversity" not in plain.rounds[0]
    for one, other in zip(measured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_that_resumes_goes_on_with_the_same_figures(tmp_path):
    straight = run(steps=8)
    run(steps=5, out=tmp_path / "run")
    resumed = run(steps=8, out=tmp_path / "run", resume=True)
    name = "gradient_diversity"
    assert [one[name] for one in resumed.rounds] == [one[name] for one in straight.rounds]


@pytest.mark.parametrize(
    "options",
    [
        {"code": DracoRepetition(3, 1), "num_workers": 3, "batch_size": 3},
        {"transforms": [WorkerMomentum()]},
        {"transforms": [Compressed(TopK())]},
        {"order": PerClient(IidPartitioner())},
    ],
    ids=["code", "momentum", "compressor", "shards"],
)
def test_messages_that_are_no_gradients_of_like_samples_are_not_measured(options):
    with pytest.raises(ValueError, match="measure_diversity needs workers that send gradients"):
        run(**options)


@pytest.mark.slow
def test_processes_observe_what_one_would(tmp_path):
    with Ranks(2, tmp_path) as ranks:
        found = ranks(observed)
    rows = [normal(2, 3, seed=rank) for rank in range(2)]
    own = sum(squared_norm([row]) for row in rows) / 2
    expected = DiversityMonitor(2, 4).update(Spread(), own, squared_norm([sum(rows) / 2]))
    assert found[0] == found[1]
    assert found[0] == pytest.approx(expected)
