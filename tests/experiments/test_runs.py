"""A run is `phalanx.train` alone; compressed training is SGD when nothing is compressed."""

from functools import partial

import pytest
import torch

import phalanx
from phalanx.aggregation import Krum, Mean
from phalanx.attacks import FixedWorkers, NotFinite, ReverseGradient
from phalanx.coding import DracoRepetition
from phalanx.compression import ErrorFeedback, PowerSGD, TensorStates, TopK, Uncompressed
from phalanx.data import Digits
from phalanx.evaluation import evaluate
from phalanx.experiments import (
    build,
    compressed_run,
    grid,
    load,
    measure,
    message_bytes,
    train_run,
)
from phalanx.losses import cross_entropy
from phalanx.models import MLP, Softmax
from phalanx.randomness import seeded

SMALL = {"data": Digits(), "num_workers": 7, "steps": 6, "evaluate_every": 2}


def test_a_run_is_training_alone_with_the_same_arguments():
    splits = Digits().load()
    with seeded(3, "weights"):
        model = MLP(splits.input_shape, splits.num_classes)
    options = {
        **{"rule": Krum(1), "num_workers": 7, "attack": ReverseGradient(30.0)},
        **{"byzantine": FixedWorkers([2]), "steps": 6, "evaluate_every": 2, "seed": 3},
    }
    run = phalanx.train(model, splits.train, test=splits.test, **options)
    found = train_run(data=Digits(), curves=["loss"], **options)
    assert found["test_accuracy"] == run.result["test_accuracy"]
    assert found["test_loss"] == run.result["test_loss"]
    assert found["evaluated"] == [2, 4, 6]
    assert found["accuracies"] == [one["test_accuracy"] for one in run.rounds[1::2]]
    assert found["last_accuracies"] == pytest.approx(sum(found["accuracies"]) / 3)
    assert found["loss"] == [one["loss"] for one in run.rounds]
    assert (found["rounds"], found["lies"]) == (6, 6)
    assert found["message_bytes"] == run.rounds[0]["message_bytes"]
    assert found["round_seconds"] >= found["compute_seconds"] > 0
    assert "stopped" not in found


def test_without_an_attack_nobody_is_byzantine_and_weights_are_told_by_a_hash():
    alone = train_run(rule=Mean(), **SMALL)
    drill = train_run(rule=Mean(), attack=None, byzantine=FixedWorkers([1]), **SMALL)
    assert drill["weights"] == alone["weights"] != train_run(rule=Krum(1), **SMALL)["weights"]
    assert drill["lies"] == 0


def test_weights_are_compared_with_those_of_another_run():
    code = DracoRepetition(7, 1)
    staged = {"attack": ReverseGradient(100.0), "byzantine": FixedWorkers([0])}
    coded = train_run(code=code, reference={"attack": None}, **staged, **SMALL)
    assert coded["weight_difference"] == coded["relative_difference"] == coded["share_moved"] == 0
    mean = {"rule": Mean(), "attack": None}
    lost = train_run(rule=Mean(), reference=mean, **staged, **SMALL)
    assert lost["share_moved"] > 0.5
    assert lost["relative_difference"] > 1


def test_too_many_byzantine_workers_stop_a_run_and_its_weights_are_measured():
    found = train_run(rule=Mean(), attack=NotFinite(), byzantine=FixedWorkers([1]), **SMALL)
    assert "contain NaN or Inf" in found["stopped"]
    assert found["rounds"] == 0
    assert found["round_seconds"] is None
    splits = Digits().load()
    fresh = evaluate(build(MLP, splits, 0), cross_entropy, splits.test, splits.train)
    assert (found["test_accuracy"], found["test_loss"]) == fresh[:2]
    (record,) = measure(
        grid(
            train_run,
            {"rule": [Mean()]},
            {**SMALL, "attack": NotFinite(), "byzantine": FixedWorkers([1])},
        ),
        jobs=1,
    )
    assert (record.status, record["test_accuracy"]) == ("stopped", fresh.accuracy)


def test_the_learning_rate_falls_after_milestones():
    sgd = partial(torch.optim.SGD, lr=0.1)
    plain, late, early = (
        train_run(optimizer=sgd, milestones=at, **SMALL)["weights"] for at in ((), (6,), (3,))
    )
    assert plain == late != early


def test_data_are_read_once():
    assert load(Digits()) is load(Digits())
    assert load(Digits(test_fraction=0.5)) is not load(Digits())


def test_nothing_compressed_is_sgd_with_momentum():
    found = compressed_run(
        data=Digits(), compressor=Uncompressed(), rate=0.1, epochs=1, model=Softmax, samples=16
    )
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    splits = Digits().load()
    rounds = len(splits.train) // 64
    trained = train_run(
        data=Digits(), model=Softmax, optimizer=sgd, num_workers=4, batch_size=64, steps=rounds
    )
    assert found["test_accuracy"] == pytest.approx(trained["test_accuracy"], abs=0.01)
    shapes = [tuple(one.shape) for one in build(Softmax, splits, 0).parameters()]
    assert found["message_bytes"] == message_bytes(Uncompressed(), shapes)


def test_compressors_that_sum_and_watchers_are_served():
    seen = []
    found = compressed_run(
        data=Digits(),
        compressor=ErrorFeedback(PowerSGD(1, min_compression=1.0)),
        rate=0.05,
        epochs=2,
        milestones=[1],
        watch=seen.append,
    )
    assert found["test_accuracy"] > 0.5
    assert len(seen) == 2 * (len(load(Digits()).train) // 128)
    assert seen[0] == TensorStates() != seen[1]


def test_compressed_training_that_leaves_the_range_stopped():
    found = compressed_run(data=Digits(), compressor=TopK(0.5), rate=1e30, epochs=1)
    assert (found["test_accuracy"], found["train_loss"]) == (0.1, 1e4)
    assert "stopped" in found
