"""Client-level privacy: bounded influence of a client, the same on all engines, what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from federated.federations import ONE_BY_ONE, federation, linear, run, weights
from phalanx.aggregation import CoordinateMedian
from phalanx.compression import TopK
from phalanx.computations import Broadcast, ClippedUpdate, Objective, Samples
from phalanx.errors import LedgerError
from phalanx.federated import ClientPrivacy, FedAvg, FedProx, Mime, Scaffold
from phalanx.randomness import generator
from phalanx.transforms import Compressed

LOUD = ClientPrivacy(1000.0, max_norm=0.3, noise_multiplier=1.0, repeatable=True)


def test_a_client_moves_the_sum_by_its_norm_at_most_whatever_it_holds(subtests):
    for algorithm in (FedAvg(lr=0.5, epochs=2), FedProx(lr=5.0), Scaffold(lr=0.5)):
        for scale in (0.0, 1.0, 1e4, math.inf, math.nan):
            with subtests.test(algorithm=type(algorithm).__name__, scale=scale):
                inputs, targets = federation()[0][:]
                objective = Objective(linear(), cross_entropy)
                compute = ClippedUpdate(algorithm.compute, 0.3)
                start = objective.layout.read(linear())
                extra = algorithm.step.extra(algorithm.step.init(linear()))
                samples = Samples(inputs * scale, targets)
                state = compute.init(objective.layout)
                made = compute.compute(
                    objective, Broadcast(start, extra), samples, state, generator(0)
                )
                assert made.update.norm() <= 0.3 * (1 + 1e-6)


def test_without_noise_or_clipping_it_is_the_plain_mean_of_clients():
    quiet = ClientPrivacy(1e20, max_norm=5.0, noise_multiplier=1e-9, repeatable=True)
    for algorithm in (FedAvg(weighted=False), FedProx(weighted=False)):
        private = weights(run(algorithm, privacy=quiet))
        torch.testing.assert_close(private, weights(run(algorithm)), rtol=0.0, atol=2e-3)


def test_engines_agree_and_the_client_is_the_unit(tmp_path):
    found = [run(FedAvg(), privacy=LOUD, engine=one) for one in (ONE_BY_ONE, "local")]
    torch.testing.assert_close(weights(found[0]), weights(found[1]), rtol=1e-4, atol=1e-5)
    assert "add or remove one client" in found[0].result["privacy"]
    assert not weights(run(FedAvg())).allclose(weights(found[0]))
    run(FedAvg(), privacy=LOUD, out=tmp_path / "run", rounds=2)
    (tmp_path / "run" / "privacy.jsonl").unlink()
    with pytest.raises(LedgerError, match="ledger"):
        run(FedAvg(), privacy=LOUD, out=tmp_path / "run", rounds=3, resume=True)


def test_on_flower_the_weights_are_the_same():
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'phalanx[flower]'")
    from federated.test_flower import on_flower

    alone = run(FedAvg(), privacy=LOUD, engine=ONE_BY_ONE, rounds=2)
    flower = on_flower(FedAvg(), privacy=LOUD, rounds=2)
    assert weights(flower).equal(weights(alone))
    assert flower.result["privacy"] == alone.result["privacy"]


def test_what_breaks_the_guarantee_is_refused_by_name(subtests):
    cases = [
        (FedAvg(), {"clients_per_round": 2}, "clients_per_round to be all"),
        (FedAvg(), {"rule": CoordinateMedian()}, "rule Mean"),
        (FedAvg(), {"transforms": [Compressed(TopK())]}, "transforms to be none"),
        (Scaffold(), {}, "takes no single messages"),
        (Mime(), {}, "one update a round"),
    ]
    for algorithm, options, rule in cases:
        with subtests.test(rule=rule), pytest.raises(ValueError, match=rule):
            run(algorithm, privacy=LOUD, **options)
    norm = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    clients = [TensorDataset(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(3)]
    with pytest.raises(ValueError, match=r"put GroupNorm\(8, 8\)"):
        run(FedAvg(), clients=clients, model=lambda: norm, privacy=LOUD)
