"""Gradients of partitions: many at once or one by one, with any model, and never out of bounds."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout, mse_loss
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import Dataset, TensorDataset

from phalanx.attacks import LabelFlip
from phalanx.coding import DracoRepetition
from phalanx.computations import Broadcast
from phalanx.fetch import fetch
from phalanx.losses import cross_entropy
from phalanx.models import GPT, LeNet, ResNet18
from phalanx.training import Job, Round, partition_updates
from phalanx.training.partition_updates import PartitionUpdates, _RelabelledLoss

PARTITIONS = 6
BATCH = 24


def a_job(model, dataset, loss=cross_entropy):
    return Job(model, loss, dataset, Round(DracoRepetition(PARTITIONS, 1)), BATCH, seed=2)


def flat(model):
    trained = [value for value in model.parameters() if value.requires_grad]
    return torch.cat([value.detach().reshape(-1) for value in trained])


def computed(job, chunk_size=None, step=1, partitions=range(PARTITIONS)):
    return found(PartitionUpdates(job, chunk_size), step, partitions)


def found(source, step=1, partitions=range(PARTITIONS)):
    blocks = list(source.blocks(step, list(partitions), Broadcast(flat(source.job.model))))
    return torch.cat([one.updates for one in blocks]), torch.cat([one.losses for one in blocks])


def by_hand(job, step=1):
    """The slow obvious way: one backward pass a partition through the model itself."""
    job.model.train()
    rows, losses = [], []
    for partition in range(PARTITIONS):
        chosen = job.round.order.samples(job.batches, step, partition)
        inputs, targets = fetch(job.dataset, chosen)
        job.model.zero_grad()
        loss = job.loss(job.model(inputs), targets)
        loss.backward()
        rows.append(
            torch.cat([v.grad.reshape(-1) for v in job.model.parameters() if v.requires_grad])
        )
        losses.append(loss.detach())
    return torch.stack(rows), torch.stack(losses)


@pytest.fixture
def doubles(blobs):
    inputs, targets = blobs[0].tensors
    return TensorDataset(inputs.double(), targets)


@pytest.fixture
def images():
    numbers = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 1, 28, 28, generator=numbers, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(4, (60,), generator=numbers))


class Branching(nn.Module):
    """Goes another way where the data say so, which `vmap` cannot follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return outputs * 2 if inputs.sum() > 0 else outputs


class Dropping(nn.Module):
    """Draws by a function, not by a layer that could be found."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs):
        return self.layer(dropout(inputs, 0.5, self.training))


class Counting(nn.Module):
    """Its outputs depend on how often it was called."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls.add_(1.0)
        return self.layer(inputs) * self.calls


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 4, 5, 6, 100])
def test_any_chunk_size_gives_the_gradients_of_one_backward_pass_each(
    doubles, make_model, chunk_size
):
    job = a_job(make_model().double(), doubles)
    rows, losses = computed(job, chunk_size)
    expected, expected_losses = by_hand(job)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", [LeNet, pytest.param(ResNet18, marks=pytest.mark.slow)])
def test_convolutions_are_vectorised_with_the_same_result(images, model):
    torch.manual_seed(0)
    job = a_job(model((1, 28, 28), 4).double(), images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = computed(job, 2, partitions=[0, 1])[0]
    apart = computed(job, 1, partitions=[0, 1])[0]
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-12)


def test_models_of_text_are_computed_one_by_one_without_a_warning():
    numbers = torch.Generator().manual_seed(3)
    tokens = torch.randint(9, (60, 5), generator=numbers)
    torch.manual_seed(0)
    model = GPT((5,), 9, width=8, depth=1, num_heads=2).double()
    job = a_job(model, TensorDataset(tokens, tokens.roll(-1, 1)), cross_entropy)
    rows, losses = computed(job)
    expected, expected_losses = by_hand(job)
    torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses, expected_losses)


def test_the_classes_of_a_sequence_are_flipped_place_by_place():
    tokens = torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(3))
    scores = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(4))
    job = a_job(nn.Linear(1, 1), TensorDataset(tokens, tokens), cross_entropy)
    flipped = _RelabelledLoss(job.loss, LabelFlip())(scores, tokens)
    assert flipped.equal(cross_entropy(scores, 8 - tokens))


def test_targets_may_be_numbers(doubles, make_model):
    inputs = doubles.tensors[0]
    job = a_job(make_model().double(), TensorDataset(inputs, inputs[:, :4].sin()), mse_loss)
    torch.testing.assert_close(computed(job)[0], by_hand(job)[0], rtol=1e-11, atol=1e-14)


def test_frozen_parameters_have_no_gradient(doubles, make_model):
    model = make_model().double()
    model[0].weight.requires_grad_(False)
    job = a_job(model, doubles)
    rows, _ = computed(job)
    assert rows.shape == (PARTITIONS, flat(model).numel())
    torch.testing.assert_close(rows, by_hand(job)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_batch_norm_takes_the_statistics_of_the_partition_and_keeps_none(
    doubles, make_model, chunk_size
):
    model = make_model(nn.BatchNorm1d(12)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    job = a_job(model, doubles)
    rows, _ = computed(job, chunk_size)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(rows, by_hand(job)[0], rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:the model's gradients are computed one by one")
@pytest.mark.parametrize("make", [lambda m: m(nn.Dropout(0.5)), lambda m: Dropping()])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_replicas_draw_the_same_numbers_whatever_was_computed_before(
    blobs, make_model, make, chunk_size
):
    job = a_job(make(make_model), blobs[0])
    rows, _ = computed(job, chunk_size)
    torch.rand(7)
    backwards, _ = computed(job, chunk_size, partitions=range(PARTITIONS)[::-1])
    assert rows.equal(backwards.flip(0))
    without = PartitionUpdates(job, chunk_size)
    without.objective._model.eval()
    calm, _ = found(without)
    assert not calm.allclose(rows)  # something was dropped


def test_partitions_and_steps_draw_different_numbers(make_model):
    same = TensorDataset(torch.ones(600, 6), torch.zeros(600, dtype=torch.int64))
    job = a_job(make_model(nn.Dropout(0.5)), same)
    rows = torch.cat([computed(job, step=step)[0] for step in (0, 1)])
    assert len({tuple(row.tolist()) for row in rows}) == 2 * PARTITIONS


def test_drawing_leaves_the_callers_random_numbers_alone(blobs, make_model):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    computed(a_job(make_model(nn.Dropout(0.5)), blobs[0]))
    assert torch.rand(3).equal(expected)


def test_a_dataset_that_augments_at_random_gives_replicas_the_same_samples(blobs, make_model):
    class Jittered(Dataset):
        def __len__(self):
            return 600

        def __getitem__(self, index):
            inputs, targets = blobs[0][index]
            return inputs + torch.randn(6), targets

    job = a_job(make_model(), Jittered())
    rows, _ = computed(job)
    assert rows.equal(computed(job)[0])
    assert not rows.allclose(computed(a_job(make_model(), blobs[0]))[0])


def test_a_model_that_vmap_cannot_take_is_computed_one_by_one_with_a_warning(blobs):
    job = a_job(Branching(), blobs[0])
    with pytest.warns(UserWarning, match="one by one.*chunk_size=1"):
        rows, losses = computed(job)
    expected, expected_losses = by_hand(job)
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(losses, expected_losses)


def test_asked_for_one_by_one_nothing_is_warned_of(blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        computed(a_job(Branching(), blobs[0]), chunk_size=1)


def test_the_warning_comes_once(blobs):
    job = a_job(Branching(), blobs[0])
    source = PartitionUpdates(job)
    with pytest.warns(UserWarning, match="one by one"):
        found(source, 0)
    found(source)  # a warning would be an error


@pytest.mark.filterwarnings("ignore:the model's gradients are computed one by one")
def test_a_model_that_is_wrong_fails_with_its_own_error(blobs):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        computed(a_job(nn.Linear(5, 4), blobs[0]))


@pytest.mark.filterwarnings("ignore:the model's gradients are computed one by one")
@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize(
    "make", [Counting, lambda: spectral_norm(nn.Linear(6, 4))], ids=["counting", "spectral norm"]
)
def test_what_a_model_writes_to_its_buffers_is_forgotten(blobs, make, chunk_size):
    job = a_job(make(), blobs[0])
    rows, _ = computed(job, chunk_size)
    source = PartitionUpdates(job, chunk_size)
    for _ in range(3):
        last, _ = found(source)
    assert last.equal(rows)


def test_a_parameter_without_use_has_gradient_zero(blobs, make_model):
    model = make_model()
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    for chunk_size in (1, 3):
        rows, _ = computed(a_job(model, blobs[0]), chunk_size)
        assert rows.shape[1] == flat(model).numel()
        assert (rows == 0).all(dim=0).sum() >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradients_of_a_call_fit_in_256_mib(blobs, dtype):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 1_500_000), nn.Linear(1, 4)).to(dtype)
    source = PartitionUpdates(a_job(model, blobs[0]))
    row_bytes = source.objective.layout.dim * dtype.itemsize
    assert source.chunk_size * row_bytes <= partition_updates._BLOCK_BYTES < 2**29
    assert (source.chunk_size + 1) * row_bytes > partition_updates._BLOCK_BYTES
