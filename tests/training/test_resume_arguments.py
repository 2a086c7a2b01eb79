"""What a run that resumes may change, and what is refused by name before any work."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

import phalanx
from phalanx.aggregation import CoordinateMedian, Krum, Mean
from phalanx.attacks import FixedWorkers, ReverseGradient, SignFlip
from phalanx.coding import DracoRepetition
from phalanx.compression import TopK
from phalanx.computations import LocalSteps
from phalanx.data import DirichletPartitioner, IidPartitioner
from phalanx.ordering import PerClient, ShuffleOnce
from phalanx.stragglers import WaitForAll
from phalanx.training import Local, ServerMomentum
from phalanx.training.composition import differences
from phalanx.transforms import Compressed, WorkerMomentum

ADAM = partial(torch.optim.Adam, lr=0.01)


def some_data(seed=0, size=210, width=6):
    source = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(size, width, generator=source), torch.randint(3, (size,), generator=source)
    )


def a_model(*layers, width=6, activation=nn.ReLU):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, 8), *layers, activation(), nn.Linear(8, 3))


class Cropped(Dataset):
    """Samples that are drawn at random whenever one asks."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def __len__(self):
        return 210

    def __getitem__(self, index):
        return torch.rand(6) + self.scale * index, index % 3


USUAL = {
    "rule": Krum(1),
    "num_workers": 7,
    "optimizer": lambda some: torch.optim.SGD(some, lr=0.1, momentum=0.9),
    "attack": SignFlip(),
    "seed": 3,
    "batch_size": 21,
    "steps": 4,
    "checkpoint_every": 2,
}


def go(out, model=None, dataset=None, **options):
    torch.manual_seed(0)
    options = {**USUAL, **options}
    if "code" in options:
        del options["rule"], options["num_workers"]
    return phalanx.train(model or a_model(), dataset or some_data(), out=out, **options)


OTHERS = {
    "rule": ({"rule": CoordinateMedian(1)}, ["rule was Krum(num_byzantine=1", "CoordinateMedian("]),
    "rule's bound": ({"rule": Krum(2)}, ["rule.num_byzantine was 1 and is now 2"]),
    "number of workers": (
        {"num_workers": 21},
        ["num_workers was 7 and is now 21"],
    ),
    "code": (
        {"code": DracoRepetition(3, 1)},
        ["code was null", "DracoRepetition(", "rule was Krum"],
    ),
    "seed": ({"seed": 4}, ["seed was 3 and is now 4"]),
    "batch size": ({"batch_size": 42}, ["batch_size was 21 and is now 42"]),
    "optimizer": ({"optimizer": ADAM}, ["step.optimizer.0 was SGD(", "is now Adam("]),
    "optimizer's momentum": (
        {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.5)},
        ["step.optimizer.0.groups.0.momentum was 0.9 and is now 0.5"],
    ),
    "learning rate": (
        {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9)},
        ["step.optimizer.0.groups.0.lr was 0.1 and is now 0.05", "give changes ['lr']"],
    ),
    "server step": ({"step": ServerMomentum()}, ["step was OptimizerStep(", "ServerMomentum("]),
    "attack": ({"attack": ReverseGradient()}, ["attack was SignFlip(", "give changes ['attack']"]),
    "who is Byzantine": ({"byzantine": FixedWorkers([1])}, ["byzantine was RandomWorkers("]),
    "order": ({"order": ShuffleOnce()}, ["order was RandomReshuffling() and is now ShuffleOnce()"]),
    "computation": ({"compute": LocalSteps(2)}, ["compute was Gradient() and is now LocalSteps("]),
    "transforms": ({"transforms": [WorkerMomentum()]}, ["transforms was [] and is now"]),
    "loss": ({"loss": partial(cross_entropy, label_smoothing=0.1)}, ["loss was"]),
    "exclusion": ({"exclude_after": 9}, ["exclude_after was null and is now 9"]),
    "data's length": ({"dataset": some_data(size=231)}, ["dataset.length was 210 and is now 231"]),
    "data's values": ({"dataset": some_data(5)}, ["dataset.checksum was"]),
    "data's kind": ({"dataset": Cropped()}, ['dataset.kind was "TensorDataset"']),
    "activation": ({"model": a_model(activation=nn.Tanh)}, ['model.modules.1 was "ReLU()"']),
    "dropout": ({"model": a_model(nn.Dropout(0.5))}, ["model.modules.1 was"]),
    "width": (
        {"model": a_model(width=7), "dataset": some_data(width=7)},
        ['model.parameters.0.weight was "float32 [8, 6]" and is now "float32 [8, 7]"'],
    ),
}


def test_everything_else_is_refused_by_name_with_both_values(tmp_path, subtests):
    go(tmp_path / "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, (options, told) in OTHERS.items():
        with subtests.test(name):
            with pytest.raises(ValueError, match="resume needs the arguments") as caught:
                go(tmp_path / "a", resume=True, **{"steps": 6, **options})
            for text in told:
                assert text in str(caught.value)
            now = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
            assert now == before


def test_what_a_run_is_made_of_can_be_read(tmp_path):
    go(tmp_path / "a")
    text = (tmp_path / "a" / "run.json").read_text()
    for told in ('"phalanx.aggregation.krum.Krum"', '"seed": 3', '"lr": 0.1', "Linear(in_features"):
        assert told in text


def bits(folder):
    return (folder / "model.safetensors").read_bytes()


def test_what_may_change_changes_no_bit(tmp_path):
    go(tmp_path / "whole", steps=8, engine=Local(chunk_size=1))
    go(tmp_path / "a", engine=Local(chunk_size=1))
    resumed = go(
        tmp_path / "a",
        resume=True,
        steps=8,
        engine=Local(chunk_size=1, deadline_s=9.0, policy=WaitForAll()),
        test=some_data(9),
        evaluate_every=1,
        checkpoint_every=3,
        title="other",
        on_round=lambda entry: None,
    )
    assert bits(tmp_path / "a") == bits(tmp_path / "whole")
    assert resumed.result["title"] == "other"


def test_the_learning_rate_changes_by_intent_alone(tmp_path):
    slow = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    go(tmp_path / "a")
    go(tmp_path / "b")
    go(tmp_path / "b", resume=True, steps=5)
    go(tmp_path / "a", resume=True, steps=5, optimizer=slow, changes=["lr"])
    assert bits(tmp_path / "a") != bits(tmp_path / "b")
    with pytest.raises(ValueError, match=r"lr was 0\.01 and is now 0\.1"):
        go(tmp_path / "a", resume=True, steps=6)
    go(tmp_path / "a", resume=True, steps=6, optimizer=slow)
    go(tmp_path / "c", step=ServerMomentum(lr=0.1))
    with pytest.raises(ValueError, match=r"step\.lr was 0\.1 and is now 0\.2"):
        go(tmp_path / "c", step=ServerMomentum(lr=0.2), resume=True, steps=6)
    go(tmp_path / "c", step=ServerMomentum(lr=0.2), resume=True, steps=6, changes=["lr"])


def test_intent_covers_what_it_names_alone(tmp_path):
    go(tmp_path / "a")
    faster = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
    with pytest.raises(ValueError, match="seed was 3 and is now 4") as caught:
        go(tmp_path / "a", resume=True, steps=5, seed=4, optimizer=faster, changes=["lr"])
    assert "lr was" not in str(caught.value)
    with pytest.raises(ValueError, match="changes must be among lr, attack, byzantine"):
        go(tmp_path / "a", resume=True, changes=["seed"])


def test_equal_things_that_are_made_anew_are_equal(tmp_path):
    options = {
        "transforms": [WorkerMomentum(0.5), Compressed(TopK(0.5))],
        "order": PerClient(DirichletPartitioner(alpha=5.0)),
        "loss": lambda outputs, targets: cross_entropy(outputs, targets) * 2,
    }

    def again():
        return {**options, "loss": lambda outputs, targets: cross_entropy(outputs, targets) * 2}

    data = Cropped()
    go(tmp_path / "a", dataset=data, **again())
    go(tmp_path / "a", dataset=Cropped(), resume=True, steps=6, **again())
    other = {"loss": lambda outputs, targets: cross_entropy(outputs, targets) * 3}
    with pytest.raises(ValueError, match=r"loss\.code was"):
        go(tmp_path / "a", dataset=data, resume=True, steps=7, **{**again(), **other})
    with pytest.raises(ValueError, match=r"dataset\.checksum was"):
        go(tmp_path / "a", dataset=Cropped(2.0), resume=True, steps=7, **again())
    other = {"order": PerClient(IidPartitioner())}
    with pytest.raises(ValueError, match=r"order\.partitioner was DirichletPartitioner"):
        go(tmp_path / "a", dataset=data, resume=True, steps=7, **{**again(), **other})


class Unsteady(Dataset):
    """Samples that differ from reading to reading, by no generator of torch."""

    count = 0

    def __len__(self):
        return 210

    def __getitem__(self, index):
        Unsteady.count += 1
        return torch.full((6,), float(Unsteady.count)), index % 3


def test_data_that_cannot_be_read_twice_alike_are_told_by_their_length(tmp_path):
    go(tmp_path / "a", dataset=Unsteady())
    go(tmp_path / "a", dataset=Unsteady(), resume=True, steps=6)


def test_frozen_weights_are_part_of_a_run_and_statistics_of_batches_are_not(tmp_path):
    def model(fill=0.5):
        found = a_model(nn.BatchNorm1d(8))
        found[0].weight.requires_grad_(False).fill_(fill)
        return found

    run = go(tmp_path / "a", model())
    assert go(tmp_path / "a", run.model, resume=True, steps=6).model is run.model
    with pytest.raises(ValueError, match=r"model\.fixed was"):
        go(tmp_path / "a", model(0.25), resume=True, steps=7)


def test_a_field_that_only_a_newer_version_knows_is_no_difference():
    old = {"rule": {"class": "Krum", "num_byzantine": 1}, "seed": 1}
    new = {"rule": {"class": "Krum", "num_byzantine": 1, "ties": "first"}, "seed": 1}
    assert differences(old, new) == []
    assert [one.where for one in differences({**old, "seed": 2}, new)] == ["seed"]
    assert [one.where for one in differences(old, {**new, "loss": "x"})] == ["loss"]


def test_a_mean_is_no_median(tmp_path):
    """Rules without a field differ, too."""
    go(tmp_path / "a", rule=Mean(), attack=None)
    with pytest.raises(ValueError, match=r"rule was Mean\(\) and is now CoordinateMedian"):
        go(tmp_path / "a", rule=CoordinateMedian(), attack=None, resume=True, steps=6)
