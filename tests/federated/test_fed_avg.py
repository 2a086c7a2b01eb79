"""FedAvg and FedProx: single steps, weights and identical clients, as their papers have it."""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset

from federated.federations import federation, linear, run, weights
from phalanx.federated import FedAvg, FedProx, FrozenSGD, MimeLite
from phalanx.randomness import seeded


def pooled(clients):
    inputs, targets = zip(*ConcatDataset(clients), strict=True)
    return torch.stack(inputs), torch.stack(targets)


def fresh(seed=0):
    with seeded(seed, "weights"):
        return linear()


def stepped(model, inputs, targets, lr):
    """One step of SGD by hand."""
    gradients = torch.autograd.grad(cross_entropy(model(inputs), targets), list(model.parameters()))
    return torch.cat(
        [
            (value - lr * gradient).detach().flatten()
            for value, gradient in zip(model.parameters(), gradients, strict=True)
        ]
    )


def test_one_step_of_full_batches_is_sgd_on_the_pooled_data(subtests):
    for seed in range(5):
        with subtests.test(seed):
            clients = federation(seed=seed)
            found = run(FedAvg(lr=0.3, batch_size=100), clients, rounds=1)
            by_hand = stepped(fresh(), *pooled(clients), 0.3)
            assert torch.allclose(weights(found), by_hand, rtol=0, atol=1e-6)


def test_uniform_weights_average_the_clients_gradients():
    clients = federation((2, 30))
    found = run(FedAvg(lr=0.3, batch_size=100, weighted=False), clients, rounds=1)
    each = [stepped(fresh(), *pooled([one]), 0.3) for one in clients]
    assert torch.allclose(weights(found), sum(each) / 2, rtol=0, atol=1e-6)


def test_identical_clients_are_one(subtests):
    for algorithm in (FedAvg(batch_size=50, num_steps=4), FedProx(batch_size=50, num_steps=4)):
        with subtests.test(repr(algorithm)):
            client = federation((9,))
            alone, many = run(algorithm, client), run(algorithm, client * 4)
            assert torch.allclose(weights(alone), weights(many), rtol=0, atol=1e-6)


def test_a_strong_pull_keeps_clients_near():
    """The first step has no pull: lr times the gradient; from there it is back by a share."""
    far = run(FedProx(lr=0.01, proximal=0.001, num_steps=50), rounds=1)
    near = run(FedProx(lr=0.01, proximal=50.0, num_steps=50), rounds=1)
    start = torch.cat([one.detach().flatten() for one in fresh().parameters()])
    assert (weights(near) - start).norm() < 0.1 * (weights(far) - start).norm()


def test_the_first_step_of_fed_prox_is_that_of_fed_avg():
    one, other = FedAvg(num_steps=1), FedProx(num_steps=1, proximal=10.0)
    assert weights(run(one, rounds=1)).equal(weights(run(other, rounds=1)))


def test_mime_lite_of_sgd_is_fed_avg_to_the_bit():
    algorithm = {"epochs": 2, "batch_size": 3}
    lite = run(MimeLite(base=FrozenSGD(), **algorithm), clients_per_round=3)
    assert weights(lite).equal(weights(run(FedAvg(**algorithm), clients_per_round=3)))


def test_local_steps_are_counted_in_epochs_or_steps():
    plan = FedAvg(batch_size=4, epochs=3).compute.batches.plan(10, None)
    assert [len(one) for one in plan] == [4, 4, 2] * 3
    assert torch.cat(plan[3:6]).sort().values.tolist() == list(range(10))
    plan = FedAvg(batch_size=4, num_steps=4).compute.batches.plan(1, None)
    assert [one.tolist() for one in plan] == [[0]] * 4
