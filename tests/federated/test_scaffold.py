"""SCAFFOLD: its invariant, its fixed points, and what becomes of clients that are killed."""

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

from federated.federations import federation, run, weights
from phalanx.federated import FedAvg, Scaffold
from phalanx.stragglers import ShiftedExponential, WaitFor
from phalanx.training import Callback, Local
from phalanx.training.run_folder import RunFolder


def controls(folder):
    """The control variates of the clients and of the server, after the last round."""
    saved = RunFolder(folder, resume=True).load_checkpoint()
    own = {client: state["compute"][0] for client, state in saved.workers.items()}
    return own, saved.server_step[1]


def test_the_mean_control_variate_of_the_clients_is_the_servers(tmp_path, subtests):
    for option in (1, 2):
        with subtests.test(option):
            run(Scaffold(option=option), out=tmp_path / str(option), rounds=4)
            own, control = controls(tmp_path / str(option))
            assert sorted(own) == [0, 1, 2, 3]
            mean = torch.stack(list(own.values())).mean(dim=0)
            assert torch.allclose(mean, control, rtol=0, atol=1e-5)


def test_with_some_clients_it_holds_over_all_of_them(tmp_path):
    """Those that never took part have zero; who is late keeps what it had, and c follows."""
    late = Local(policy=WaitFor(3), delays=ShiftedExponential())
    run(Scaffold(), federation((4,) * 8), clients_per_round=4, engine=late, out=tmp_path / "a")
    own, control = controls(tmp_path / "a")
    total = torch.stack(list(own.values())).sum(dim=0) / 8
    assert torch.allclose(total, control, rtol=0, atol=1e-5)


def test_one_client_alone_does_sgd():
    client = federation((20,))
    one = run(Scaffold(num_steps=5), client, rounds=4)
    other = run(FedAvg(num_steps=5), client, rounds=4)
    assert torch.allclose(weights(one), weights(other), rtol=0, atol=1e-5)


def test_it_finds_the_minimum_of_quadratics_that_fed_avg_misses():
    """`1/2 a_j (x - b_j)^2` with a = (1, 10): the sum has its minimum elsewhere than local SGD."""

    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.zeros(1))

        def forward(self, scale):
            return scale.sqrt() * self.x

    curvatures, minima = torch.tensor([1.0, 10.0]), torch.tensor([-4.0, 1.0])
    clients = [
        TensorDataset(a.reshape(1, 1), (a.sqrt() * b).reshape(1, 1))
        for a, b in zip(curvatures, minima, strict=True)
    ]
    optimum = (curvatures * minima).sum() / curvatures.sum()
    gaps = [
        abs(
            weights(
                run(kind(lr=0.02, num_steps=10), clients, Scalar, rounds=150, loss=mse_loss)
            ).item()
            - optimum
        )
        for kind in (Scaffold, FedAvg)
    ]
    assert gaps[1] > 10 * gaps[0]
    assert gaps[0] < 1e-3


def test_nothing_is_kept_of_clients_that_never_took_part(tmp_path):
    class Watch(Callback):
        def on_round(self, run, entry):
            self.seen = getattr(self, "seen", set()) | set(entry["clients"])

    watch = Watch()
    run(
        Scaffold(),
        federation((3,) * 40),
        clients_per_round=2,
        rounds=4,
        out=tmp_path / "a",
        callbacks=[watch],
    )
    assert set(controls(tmp_path / "a")[0]) == watch.seen
