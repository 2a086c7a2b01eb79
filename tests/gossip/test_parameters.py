"""Parameters that train: adapters, replicas, and the smallest of groups."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from phalanx.gossip import (
    DPSGD,
    ChocoSGD,
    ParameterGossip,
    PowerGossip,
    ProcessNetwork,
    Replicas,
    SimulatedNetwork,
    Topology,
    average,
    spread,
)
from phalanx.optimizers import decentralize
from phalanx.randomness import seeded

RING = Topology.ring(4)


def model():
    with seeded(0, "weights"):
        return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def scattered():
    replicas = Replicas(model(), 4)
    with torch.no_grad(), seeded(1, "scatter"):
        for x in replicas.parameters():
            x += torch.randn_like(x)
    return replicas


def test_replicas_compute_what_their_models_do():
    replicas, inputs = scattered(), torch.arange(4 * 7 * 6.0).view(4, 7, 6).sin()
    outputs = replicas(inputs)
    outputs.square().sum().backward()
    for node in range(4):
        single = replicas.model(node)
        own = single(inputs[node])
        torch.testing.assert_close(outputs[node], own)
        own.square().sum().backward()
        for name, x in single.named_parameters():
            gradient = replicas.by_name()[name].grad[node]
            torch.testing.assert_close(gradient, x.grad)


def test_replicas_start_equal_and_leave_the_model_alone():
    one = model()
    replicas = Replicas(one, 3)
    for name, x in one.named_parameters():
        copies = replicas.by_name()[name]
        assert all(torch.equal(copy, x) for copy in copies)
    with torch.no_grad():
        replicas.get_parameter("0-bias").zero_()
    assert one[0].bias.any()
    assert not replicas.model()[0].bias.any()


def test_frozen_parameters_are_neither_trained_nor_sent():
    frozen = model()
    frozen[0].weight.requires_grad_(False)
    replicas = Replicas(frozen, 4)
    gossip = ParameterGossip(replicas.named_parameters(), DPSGD(), SimulatedNetwork(RING))
    gossip.mix()
    assert gossip.last_bytes.tolist() == [2 * 4 * (5 + 15 + 3)] * 4


def test_mixing_brings_replicas_together_and_synchronising_makes_them_equal(subtests):
    for algorithm in [DPSGD(), PowerGossip(), ChocoSGD()]:
        with subtests.test(f"{algorithm}"):
            replicas = scattered()
            apart = [spread(x) for x in replicas.parameters()]
            means = [x.detach().mean(dim=0) for x in replicas.parameters()]
            gossip = ParameterGossip(replicas.named_parameters(), algorithm, SimulatedNetwork(RING))
            for _ in range(40):
                gossip.mix()
            assert gossip.memory.step == 40
            assert all(
                spread(x) < 0.3 * before
                for x, before in zip(replicas.parameters(), apart, strict=True)
            )
            gossip.synchronize()
            assert gossip.memory.step == 40
            for x, mean in zip(replicas.parameters(), means, strict=True):
                torch.testing.assert_close(x[0], mean, rtol=1e-4, atol=1e-5)
                assert all(torch.equal(x[0], other) for other in x)


def test_a_state_of_something_else_is_refused():
    def made(algorithm):
        return ParameterGossip(scattered().named_parameters(), algorithm, SimulatedNetwork(RING))

    power = made(PowerGossip())
    power.mix()
    with pytest.raises(ValueError, match="state must hold"):
        made(ChocoSGD()).load_state_dict(power.state_dict())
    with pytest.raises(ValueError, match="state must hold"):
        made(PowerGossip(rank=2)).load_state_dict(power.state_dict())
    made(PowerGossip()).load_state_dict(power.state_dict())


def test_arguments_are_checked():
    network = SimulatedNetwork(RING)
    with pytest.raises(ValueError, match="at least one that trains, got none"):
        ParameterGossip([], DPSGD(), network)
    with pytest.raises(ValueError, match="num_nodes must be at least 1, got 0"):
        Replicas(model(), 0)


def test_one_process_alone_needs_no_other(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network, one = ProcessNetwork(Topology.ring(1)), model()
        before = [x.clone() for x in one.parameters()]
        for algorithm in (DPSGD(), PowerGossip(), ChocoSGD()):
            gossip = ParameterGossip(one.named_parameters(), algorithm, network)
            gossip.mix()
            gossip.synchronize()
        found = average(torch.ones(1, 3), PowerGossip(), network, rounds=2)
        optimizer = decentralize(one, torch.optim.SGD(one.parameters(), lr=0.0))
        one(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.0
        assert (optimizer.gossip.algorithm, optimizer.gossip.memory.step) == (PowerGossip(), 1)
        with pytest.raises(ValueError, match="one of this rank alone"):
            decentralize(DistributedDataParallel(one), optimizer.optimizer)
        with pytest.raises(ValueError, match="tolerance must be 0 among processes"):
            average(torch.ones(1, 3), PowerGossip(), network, rounds=2, tolerance=0.1)
    finally:
        dist.destroy_process_group()
    assert found.values.tolist() == [[1.0, 1.0, 1.0]]
    assert found.distances == []
    assert network.bytes_sent.tolist() == [0]
    assert all(map(torch.equal, one.parameters(), before))
