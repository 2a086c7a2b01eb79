"""FedDF: what distillation leaves alone, what it never makes worse, and whom it learns from."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils.data import TensorDataset

from federated.federations import federation, linear, run, weights
from phalanx.aggregation import CoordinateMedian
from phalanx.attacks import FixedWorkers, SignFlip
from phalanx.data import Digits, DirichletPartitioner
from phalanx.federated import (
    Distillation,
    FedAvg,
    FedDF,
    deal,
    federate_prototypes,
    noise_inputs,
)
from phalanx.federated.distillation import teacher_logits
from phalanx.models import MLP

INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
SHORT = Distillation(num_steps=30, evaluate_every=5)


def flat(model):
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def test_a_student_that_is_its_only_teacher_stays_as_it_is():
    model = nn.Sequential(linear(4, 8), nn.ReLU(), nn.Dropout(0.5), linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    targets = SHORT.targets(teacher_logits([model], INPUTS))
    SHORT.distil(model, INPUTS, targets, generator=torch.Generator())
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_the_gradient_with_respect_to_the_students_logits():
    """`(softmax(x) - q) / B`."""
    logits = torch.randn(16, 5).requires_grad_()
    q = torch.randn(16, 5).softmax(dim=1)
    kl_div(log_softmax(logits, dim=1), q, reduction="batchmean").backward()
    expected = (logits.softmax(dim=1) - q) / 16
    assert torch.allclose(logits.grad, expected.detach(), atol=1e-6)


def test_a_constant_of_a_teacher_changes_nothing():
    logits = torch.randn(3, 20, 5)
    moved = logits + torch.tensor([1.0, -2.0, 30.0])[:, None, None]
    assert torch.allclose(SHORT.targets(logits), SHORT.targets(moved), atol=1e-5)


def test_it_is_never_worse_than_its_start(subtests):
    """Teachers that know nothing, and validation data that the start fits."""
    for seed in range(4):
        with subtests.test(seed):
            torch.manual_seed(seed)
            model = linear()
            labels = model(INPUTS).argmax(dim=1)
            held = TensorDataset(INPUTS, labels)
            targets = SHORT.targets(torch.randn(2, 64, 3))
            done = SHORT.distil(model, INPUTS, targets, held, torch.Generator())
            accuracy = (model(INPUTS).argmax(dim=1) == labels).double().mean().item()
            assert done.before == done.after == accuracy == 1.0


def test_teachers_stay_as_they_are():
    teacher = nn.Sequential(linear(4, 8), nn.BatchNorm1d(8), linear(8, 3))
    before = copy.deepcopy(teacher.state_dict())
    teacher[1].eval()
    teacher_logits([teacher], INPUTS)
    assert all(before[name].equal(value) for name, value in teacher.state_dict().items())
    assert [module.training for module in teacher] == [True, False, True]


def test_the_ensemble_is_the_mean_of_the_logits():
    teachers, labels = [linear(), linear()], torch.randint(3, (64,))
    right = sum(one(INPUTS) for one in teachers).argmax(dim=1) == labels
    found = SHORT.ensemble_accuracy(teachers, TensorDataset(INPUTS, labels), INPUTS)
    assert found == right.double().mean().item()
    nn.init.constant_(teachers[0].weight, torch.nan)
    assert SHORT.ensemble_accuracy(teachers[:1], TensorDataset(INPUTS, labels), INPUTS) is None


def test_who_says_no_number_is_left_out():
    broken = linear()
    nn.init.constant_(broken.weight, 3e38)
    assert teacher_logits([linear(), broken], INPUTS * 100).shape == (1, 64, 3)
    assert teacher_logits([broken], INPUTS * 100).shape[0] == 0


def test_a_student_learns_from_its_teachers():
    splits = Digits().load()
    clients = deal(splits.train, DirichletPartitioner(0.3), 8)
    held = TensorDataset(*(part[:150] for part in splits.test.tensors))

    def model():
        return MLP(splits.input_shape, splits.num_classes)

    common = {"lr": 0.1, "epochs": 5}
    options = {"rounds": 1, "test": splits.test, "clients": clients, "model": model}
    plain = run(FedAvg(**common), **options)
    distilled = run(
        FedDF(
            unlabelled=splits.train,
            validation=held,
            distillation=Distillation(num_steps=300),
            **common,
        ),
        **options,
    )
    assert distilled.result["test_accuracy"] > plain.result["test_accuracy"]
    entry = distilled.rounds[0]
    assert entry["distilled_accuracy"] >= entry["mean_accuracy"]
    assert entry["ensemble_accuracy"] > entry["mean_accuracy"]


def test_a_robust_mean_of_the_logits_bears_byzantine_teachers():
    clients = federation((30,) * 5)
    common = {
        "attack": SignFlip(),
        "byzantine": FixedWorkers([0]),
        "rule": CoordinateMedian(1),
        "rounds": 2,
    }
    algorithm = FedDF(
        unlabelled=noise_inputs((4,), 50),
        distillation=Distillation(num_steps=10, rule=CoordinateMedian(1)),
    )
    assert weights(run(algorithm, clients, **common)).isfinite().all()


def test_unlabelled_data_must_be_given():
    with pytest.raises(ValueError, match="unlabelled must be data"):
        run(FedDF())
    with pytest.raises(ValueError, match="server must be left out"):
        FedDF(server=FedDF(unlabelled=noise_inputs((4,), 9)).step)


def test_prototypes_teach_one_another():
    """They gain on a FedAvg of their own, whose clients are a third of all."""
    splits = Digits().load()
    dealt = deal(splits.train, DirichletPartitioner(1.0), 9)
    clients = [dealt[0:3], dealt[3:6], dealt[6:9]]
    makers = [
        lambda width=width: MLP(splits.input_shape, splits.num_classes, hidden=[width])
        for width in (16, 32, 64)
    ]
    algorithm = FedDF(
        lr=0.1, epochs=5, unlabelled=splits.train, distillation=Distillation(num_steps=300)
    )
    common = {"rounds": 1, "test": splits.test}
    alone = federate_prototypes(makers, clients, algorithm, distil=False, **common)
    taught = federate_prototypes(makers, clients, algorithm, **common)
    entry = taught.rounds[0]
    assert entry["teachers"] == 9
    assert entry["mean_accuracies"] == alone.rounds[0]["test_accuracies"]
    gains = [
        after - before
        for before, after in zip(entry["mean_accuracies"], entry["test_accuracies"], strict=True)
    ]
    assert sum(gains) > 0
    again = federate_prototypes(makers, clients, algorithm, **common)
    assert all(flat(a).equal(flat(b)) for a, b in zip(again.models, taught.models, strict=True))
    with pytest.raises(ValueError, match="clients must be one list for each of 3"):
        federate_prototypes(makers, clients[:2], algorithm)
