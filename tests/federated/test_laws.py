"""What all federated algorithms obey: engines, chunks, clients of one sample, refusals."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import phalanx
from federated.federations import ALGORITHMS, ONE_BY_ONE, federation, linear, run, weights
from laws import concrete
from phalanx import federated
from phalanx.aggregation import Aggregator, CoordinateMedian, Krum, Mean, MultiKrum
from phalanx.attacks import FixedWorkers, NotFinite, SignFlip, StaleGradient
from phalanx.compression import ErrorFeedback, TopK
from phalanx.data import DirichletPartitioner, ShardPartitioner
from phalanx.federated import (
    FedAvg,
    FederatedAlgorithm,
    FedProx,
    FrozenOptimizer,
    Mime,
    Scaffold,
    deal,
)
from phalanx.stragglers import ShiftedExponential, WaitFor
from phalanx.training import Local, Ray, ServerMomentum
from phalanx.transforms import Compressed


def test_all_have_defaults_and_a_step_for_what_they_compute(subtests):
    for kind in concrete(federated, FederatedAlgorithm):
        with subtests.test(kind.__name__):
            algorithm = kind()
            assert algorithm == kind()
            assert algorithm.compute.num_vectors == algorithm.step.num_vectors
    assert {type(one) for one in ALGORITHMS} <= set(concrete(federated, FederatedAlgorithm))
    assert concrete(federated, FrozenOptimizer)


def test_together_as_one_by_one(subtests):
    """Vmap's kernels add in another order: to rounding. One by one is the reference."""
    for algorithm in ALGORITHMS:
        with subtests.test(repr(algorithm)):
            one, many = run(algorithm, engine=ONE_BY_ONE), run(algorithm)
            assert torch.allclose(weights(one), weights(many), rtol=0, atol=2e-5)


def test_the_same_arguments_give_the_same_bits(subtests):
    for algorithm in ALGORITHMS:
        with subtests.test(repr(algorithm)):
            assert weights(run(algorithm)).equal(weights(run(algorithm)))


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, subtests):
    """State of clients, server and all: rounds 4 to 6 follow from the checkpoint alone."""
    for place, algorithm in enumerate(ALGORITHMS):
        with subtests.test(repr(algorithm)):
            common = {"clients_per_round": 2, "checkpoint_every": 1}
            whole = run(algorithm, rounds=6, **common)
            run(algorithm, rounds=3, out=tmp_path / str(place), **common)
            rest = run(algorithm, rounds=6, out=tmp_path / str(place), resume=True, **common)
            assert weights(rest).equal(weights(whole))
            assert [one["step"] for one in rest.rounds] == [0, 1, 2, 3, 4, 5]


def test_who_sends_no_number_is_named_and_never_averaged_in(subtests):
    for algorithm in ALGORITHMS:
        with subtests.test(repr(algorithm)):
            found = run(
                algorithm,
                federation((5,) * 7),
                rule=MultiKrum(1),
                attack=NotFinite(),
                byzantine=FixedWorkers([2]),
                clients_per_round=5,
                rounds=4,
            )
            assert weights(found).isfinite().all()
            for entry in found.rounds:
                assert entry["suspects"] == [2] * (2 in entry["clients"])


def test_rules_and_attacks_go_with_all_of_them(subtests):
    for algorithm in ALGORITHMS:
        with subtests.test(repr(algorithm)):
            found = run(
                algorithm, federation((6,) * 8), rule=CoordinateMedian(2), attack=SignFlip()
            )
            assert weights(found).isfinite().all()
            assert all(len(entry["byzantine"]) == 2 for entry in found.rounds)


def test_bytes_are_those_of_the_messages(subtests):
    """Per client: 15 parameters of 4 bytes; SCAFFOLD twice that, both ways."""
    for algorithm, factor in ((FedAvg(), 1), (Scaffold(), 2)):
        with subtests.test(repr(algorithm)):
            found = run(algorithm, clients_per_round=3)
            assert found.result["message_bytes"] == 3 * 3 * 60 * factor
            assert found.result["broadcast_bytes"] == 3 * 3 * 60 * factor
    compressed = run(FedAvg(), transforms=[Compressed(ErrorFeedback(TopK(0.2)))])
    assert compressed.result["message_bytes"] < run(FedAvg()).result["message_bytes"]


def test_error_feedback_goes_with_the_client():
    """One client at a time: what is left over of it waits for its next turn, not for the seat."""
    clients = federation((4, 4, 4))
    sent = run(
        FedAvg(), clients, clients_per_round=1, transforms=[Compressed(ErrorFeedback(TopK(0.01)))]
    )
    assert len({entry["clients"][0] for entry in sent.rounds}) > 1


def test_a_client_too_late_keeps_what_it_remembered():
    """With nobody late the control variates of all three add up to the server's."""
    late = Local(policy=WaitFor(2), delays=ShiftedExponential())
    found = run(Scaffold(), federation((4, 4, 4)), engine=late, rounds=5)
    assert any(entry["missing"] for entry in found.rounds)
    assert weights(found).isfinite().all()


def test_every_client_is_drawn_and_the_draw_is_even():
    found = run(FedAvg(), federation((2,) * 10), clients_per_round=4, rounds=60)
    counts = torch.zeros(10)
    for entry in found.rounds:
        assert entry["clients"] == sorted(set(entry["clients"]))
        counts[entry["clients"]] += 1
    assert counts.sum() == 240
    assert counts.min() >= 10  # 24 are expected of each


def test_metrics_say_how_clients_fare():
    found = run(FedAvg(), federation((30,) * 20), evaluate_every=1, rounds=2)
    for entry in found.rounds:
        assert 0 <= entry["client_accuracy_worst_decile"] <= entry["client_accuracy_median"] <= 1


@dataclass(frozen=True)
class Unweighted(Aggregator):
    """A rule that knows of no weights: the first message."""

    def judge(self, rows):
        return Mean().judge(rows[:1])


REFUSED = {
    "clients must hold at least 1 sample": {"clients": [*federation(), Subset([], [])]},
    "clients_per_round must be at most the 4 clients": {"clients_per_round": 5},
    "rounds must be at least 1": {"rounds": 0},
    "weighted needs a rule that weighs": {
        "algorithm": FedAvg(weighted=True),
        "rule": Unweighted(),
    },
    "transforms must be none where workers send Gradient first": {
        "algorithm": Mime(),
        "transforms": [Compressed(TopK(0.5))],
    },
    "attack must not be rounds behind": {
        "rule": Krum(1),
        "attack": StaleGradient(),
        "clients": federation((4,) * 6),
    },
    "num_byzantine must be below": {"rule": Krum(2)},
}


def test_what_does_not_fit_is_refused_before_the_first_round(subtests):
    for message, options in REFUSED.items():
        with subtests.test(message):
            algorithm = options.pop("algorithm", FedAvg())
            rounds = []
            with pytest.raises(ValueError, match=message):
                run(algorithm, on_round=rounds.append, **options)
            assert rounds == []


def test_fields_out_of_range_are_refused(subtests):
    for kind, wrong in (
        (FedAvg, {"lr": 0.0}),
        (FedAvg, {"batch_size": 0}),
        (FedAvg, {"num_steps": 0}),
        (FedAvg, {"momentum": 1.0}),
        (FedProx, {"proximal": -1.0}),
        (FedAvg, {"server": Scaffold().step}),
    ):
        with (
            subtests.test(f"{kind.__name__} {wrong}"),
            pytest.raises(ValueError, match=r"must|takes"),
        ):
            kind(**wrong)


def test_deal_is_a_partition_of_the_data(subtests):
    data = TensorDataset(torch.zeros(60, 1), torch.arange(60) % 3)
    for partitioner in (ShardPartitioner(), DirichletPartitioner(0.1)):
        with subtests.test(repr(partitioner)):
            dealt = deal(data, partitioner, 6)
            together = sorted(index for client in dealt for index in client.indices)
            assert together == list(range(60))
            again = deal(data, partitioner, 6)
            assert [one.indices for one in dealt] == [one.indices for one in again]


def test_models_with_dropout_and_batch_normalisation_are_trained():
    """Dropout goes one by one, from the round's seed; statistics are those of the batch."""

    def model():
        return nn.Sequential(linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), linear(8, 3))

    clients = federation((6, 9, 8))
    algorithm = FedAvg(batch_size=3)
    assert weights(run(algorithm, clients, model)).equal(weights(run(algorithm, clients, model)))


def test_a_model_is_taken_as_it_is():
    model = linear()
    assert run(FedAvg(), model=model).model is model
    assert replace(FedAvg(), server=ServerMomentum()).server.momentum == 0.9
    assert phalanx.federate is federated.federate


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_gives_the_bits_of_one_process(subtests, cluster):
    for algorithm in ALGORITHMS:
        with subtests.test(repr(algorithm)):
            common = {"clients_per_round": 2, "rounds": 3}
            here = run(algorithm, engine=ONE_BY_ONE, **common)
            there = run(algorithm, engine=Ray(), **common)
            assert weights(here).equal(weights(there))
