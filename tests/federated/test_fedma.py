"""Federated matched averaging on engines: rounds, clients that are missing, and bad replies."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils.data import TensorDataset

from phalanx.aggregation import CoordinateMedian, TrimmedMean
from phalanx.errors import TooManyByzantineError, WorkerError
from phalanx.federated import ClientTraining, FedMA, Matching, fedma, fuse
from phalanx.federated.neurons import state_of
from phalanx.models import MLP
from phalanx.randomness import derive_seed, generator, seeded
from phalanx.stragglers import RecordedTrace
from phalanx.training import Local, Ray

QUICK = ClientTraining(epochs=2, lr=0.1, batch_size=16)
ALGORITHM = FedMA(rounds=2, training=QUICK, retraining=QUICK, matching=Matching(mass=1.0))


def mlp(seed, *hidden):
    with seeded(seed, "weights"):
        return MLP((6,), 3, hidden=hidden)


def clients(number=3, size=40):
    source = generator("clients")
    x = torch.randn(number * size, 6, generator=source)
    y = x[:, :3].argmax(dim=1)
    return [TensorDataset(*part) for part in zip(x.split(size), y.split(size), strict=True)]


def same(one, other):
    a, b = state_of(one.model), state_of(other.model)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_rounds_learn_and_repeat_bit_for_bit():
    models, data = [mlp(one, 10 + one, 8) for one in range(3)], clients()
    run = fedma(models, data, ALGORITHM, test=data[0])
    assert same(run, fedma(models, data, ALGORITHM))
    assert not same(run, fedma(models, data, ALGORITHM, seed=1))
    assert [row["clients"] for row in run.rounds] == [[0, 1, 2]] * 2
    assert run.rounds[-1]["test_accuracy"] > 0.6
    assert all(row["widths"]["layers.1"] >= 12 and not row["missing"] for row in run.rounds)
    assert [len(one["layers.1"]) for one in run.assignments.values()] == [10, 11, 12]
    sizes = [sum(one.numel() for one in model.parameters()) for model in models]
    first, second = run.rounds
    assert 4 * sum(sizes) <= first["message_bytes"] < 8 * sum(sizes)
    assert second["broadcast_bytes"] > first["broadcast_bytes"]


def test_a_round_is_fuse_with_the_same_training():
    models, data = [mlp(one, 9, 7) for one in range(3)], clients()
    none = ClientTraining(epochs=0)
    algorithm = FedMA(training=none, retraining=QUICK)
    run = fedma(models, data, algorithm)
    step = iter(range(3, 100))

    def retrain(number, model):
        layer = next(step) // 3
        QUICK.train(
            model, data[number], torch.nn.functional.cross_entropy, 0, "fedma", layer, number
        )

    counts = torch.stack([torch.bincount(one.tensors[1], minlength=3) for one in data])
    fused = fuse(models, counts, retrain=retrain, seed=derive_seed(0, "round", 0))
    assert same(run, fused)


def test_without_training_a_second_round_changes_nothing():
    models, data = [mlp(one, 9) for one in range(3)], clients()
    none = ClientTraining(epochs=0)
    one, two = (
        fedma(models, data, FedMA(rounds, none, None, matching=Matching(mass=1.0)))
        for rounds in (1, 2)
    )
    assert one.rounds[0]["widths"] == two.rounds[1]["widths"]
    x = data[0].tensors[0]
    torch.testing.assert_close(one.model(x), two.model(x))


def test_late_clients_are_out_of_the_round_and_come_back(tmp_path):
    """Client 1 is late in the second phase of the first round, client 2 in that of the second."""
    late = [[0, 0, 0], [0, 9, 0], [0, 0, 0], [0, 0, 0], [0, 0, 9], [0, 0, 0]]
    (tmp_path / "trace.csv").write_text("\n".join(",".join(map(str, row)) for row in late))
    engine = Local(delays=RecordedTrace(tmp_path / "trace.csv"), deadline_s=5.0)
    run = fedma(mlp(0, 9, 7), clients(), ALGORITHM, engine=engine)
    assert [row["missing"] for row in run.rounds] == [{"1": "late"}, {"2": "late"}]
    assert [row["clients"] for row in run.rounds] == [[0, 2], [0, 1]]
    assert sorted(run.assignments) == [0, 1]
    (tmp_path / "dead.csv").write_text("9,9,9\n")
    trace = RecordedTrace(tmp_path / "dead.csv")
    with pytest.raises(WorkerError, match="no client is left in round 0"):
        fedma(mlp(0, 9), clients(), ALGORITHM, engine=Local(delays=trace, deadline_s=5.0))


@dataclass(frozen=True)
class Broken(ClientTraining):
    """One client breaks its weights while it trains."""

    client: int = 1
    to: str = "nan"

    def train(self, model, dataset, loss, *names):
        found = super().train(model, dataset, loss, *names)
        if names[-1] == self.client:
            weight = next(one for one in model.parameters() if one.requires_grad)
            if self.to == "nan":
                weight.data[0] = torch.nan
            else:
                weight.data = weight.data[:-1]
        return found


def test_bad_replies_mark_their_sender_and_nobody_averages_them():
    for to, words in (("nan", "layers.1.weight is not finite"), ("short", "is not of shape")):
        broken = Broken(epochs=2, lr=0.1, batch_size=16, to=to)
        algorithm = replace(ALGORITHM, rounds=1, training=broken)
        run = fedma(mlp(0, 9, 7), clients(), algorithm)
        assert words in run.rounds[0]["missing"]["1"]
        assert run.rounds[0]["clients"] == [0, 2]
        assert run.rounds[0]["suspects"] == [1]
        assert all(one.isfinite().all() for one in run.model.parameters())


@dataclass(frozen=True)
class Liar(ClientTraining):
    """One client sends its weights turned round, and fifty times as large."""

    def train(self, model, dataset, loss, *names):
        found = super().train(model, dataset, loss, *names)
        for one in model.parameters():
            if names[-1] == 1 and one.requires_grad:
                one.data.mul_(-50)
        return found


def test_a_robust_rule_bears_a_client_that_sends_false_neurons():
    data, lies = clients(5), Liar(epochs=3, lr=0.1, batch_size=16)
    inputs = (torch.cat([one.tensors[part] for one in data]) for part in (0, 1))
    common = {"models": mlp(0, 10, 8), "clients": data, "test": TensorDataset(*inputs)}
    algorithm = replace(ALGORITHM, rounds=1, training=lies, retraining=lies)
    mean = fedma(algorithm=algorithm, **common)
    median = fedma(algorithm=replace(algorithm, rule=CoordinateMedian(1)), **common)
    assert median.rounds[0]["test_accuracy"] > mean.rounds[0]["test_accuracy"] + 0.05
    assert all(one.abs().max() < 10 for one in state_of(median.model).values())
    assert any(one.abs().max() > 10 for one in state_of(mean.model).values())


def test_too_few_clients_for_a_rule_stop_the_round(tmp_path):
    (tmp_path / "trace.csv").write_text("0,0,0\n0,9,0\n")
    engine = Local(delays=RecordedTrace(tmp_path / "trace.csv"), deadline_s=5.0)
    algorithm = replace(ALGORITHM, rule=TrimmedMean(1))
    with pytest.raises(TooManyByzantineError, match="needs more than the 2 clients left in round"):
        fedma(mlp(0, 9), clients(), algorithm, engine=engine)
    with pytest.raises(ValueError, match="rule must work with 2 networks"):
        fedma(mlp(0, 9), clients(2), algorithm)


def test_refusals():
    data = clients()
    with pytest.raises(ValueError, match="models must be 1 or as many as clients, got 2, 3"):
        fedma([mlp(0, 4), mlp(1, 4)], data)
    with pytest.raises(ValueError, match=r"clients must hold at least 1 sample each.*\[1\]"):
        fedma(mlp(0, 4), [data[0], TensorDataset(torch.zeros(0, 6), torch.zeros(0).long())])
    bad = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Softmin(1), torch.nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"not understood: 1 \(Softmin\)"):
        fedma(bad, data)


@pytest.mark.slow
def test_ray_gives_the_same_bits():
    pytest.importorskip("ray")
    models, data = [mlp(one, 8) for one in range(2)], clients(2)
    assert same(fedma(models, data, ALGORITHM, engine=Ray()), fedma(models, data, ALGORITHM))
