"""Real processes and gloo against all nodes in one process."""

import pytest
import torch

from ddp.ranks import Ranks
from gossip import cases
from phalanx.compression import QSGD
from phalanx.errors import DisagreementError, RankLostError, WireError
from phalanx.gossip import (
    DPSGD,
    ChocoSGD,
    ParameterGossip,
    PowerGossip,
    Replicas,
    SimulatedNetwork,
    Topology,
)
from phalanx.optimizers import GossipOptimizer

pytestmark = pytest.mark.slow
NUM_RANKS = 4
STEPS = 5
ELIAS = ChocoSGD(QSGD(coding="elias-sparse"))  # messages of any length


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with Ranks(NUM_RANKS, tmp_path_factory.mktemp("ranks")) as started:
        yield started


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("topology", [Topology.ring(4), Topology.star(4)], ids=["ring", "star"])
@pytest.mark.parametrize("algorithm", cases.ALGORITHMS, ids=repr)
def test_processes_come_to_the_simulated_values_and_bytes(ranks, algorithm, topology):
    found = ranks(cases.in_processes, algorithm, topology, STEPS)
    network = SimulatedNetwork(topology)
    values, memory, sent = cases.rounds(network, algorithm, cases.tensors(NUM_RANKS), STEPS)
    for rank, (ours, _, bytes_sent) in enumerate(found):
        assert bytes_sent == [sent[rank].item()]
        for name, x in values.items():
            close(ours[name], x[rank : rank + 1])
    if isinstance(algorithm, PowerGossip) and algorithm.warm_start:
        both_ends(topology, [states["tensors"] for _, states, _ in found])
        for place, part in enumerate(memory.states["matrix"]):
            theirs = [states["tensors"][f"matrix.{place}"] for _, states, _ in found]
            torch.testing.assert_close(torch.cat(theirs), part, rtol=1e-4, atol=1e-4)


def both_ends(topology, tensors):
    """The factors of an edge, as its two processes hold them: the same bits."""
    for low, high in topology.edges:
        for name in ("matrix.0", "matrix.1", "kernel.0", "kernel.1"):
            one = tensors[low][name][topology.neighbors(low).index(high)]
            other = tensors[high][name][topology.neighbors(high).index(low)]
            assert torch.equal(one, other)


@pytest.mark.parametrize("first", ["gossip", "step"])
@pytest.mark.parametrize("algorithm", [DPSGD(), PowerGossip(), ChocoSGD()], ids=repr)
def test_training_is_that_of_replicas(ranks, algorithm, first):
    """Each process with a model of its own, and a checkpoint, against one vectorised loop."""
    topology = Topology.ring(NUM_RANKS)
    found = ranks(cases.training, algorithm, topology, 6, first)
    replicas = Replicas(cases.model_of(0), NUM_RANKS)
    nodes = [dict(cases.model_of(node).named_parameters()) for node in range(NUM_RANKS)]
    with torch.no_grad():
        for name, parameter in replicas.by_name().items():
            parameter.copy_(torch.stack([node[name] for node in nodes]))
    network = SimulatedNetwork(topology)
    gossip = ParameterGossip(replicas.by_name(), algorithm, network, seed=3)
    made = torch.optim.SGD(replicas.parameters(), lr=0.1, momentum=0.9)
    optimizer = GossipOptimizer(made, gossip, first)
    gossip.synchronize()
    for step in range(6):
        batches = zip(*(cases.batch(node, step) for node in range(NUM_RANKS)), strict=True)
        inputs, targets = map(torch.stack, batches)
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(
            replicas(inputs).flatten(0, 1), targets.flatten(), reduction="none"
        )
        losses = losses.view(NUM_RANKS, -1).mean(dim=1)
        losses.sum().backward()
        optimizer.step()
        for rank in range(NUM_RANKS):
            assert found[rank][0][step] == pytest.approx(losses[rank].item(), abs=1e-5)
    mean = dict(replicas.model().named_parameters())
    for _, parameters in found:
        for name, x in parameters.items():
            torch.testing.assert_close(x, mean[name].detach(), rtol=1e-5, atol=1e-5)


def test_ranks_that_are_told_different_things_say_so(ranks):
    for one in ranks.outcomes(cases.alike, PowerGossip(), Topology.ring(4), seed=5):
        assert isinstance(one, DisagreementError)
        assert (one.ranks, "seed is 0 on [0, 2, 3], 5 on [1]" in str(one)) == ([1], True)
    ranks(cases.alike, PowerGossip(), Topology.ring(4), seed=0)  # the group is still in step


def test_a_topology_of_another_size_is_refused(ranks):
    for one in ranks.outcomes(cases.in_processes, DPSGD(), Topology.ring(5), 1):
        assert isinstance(one, ValueError)
        assert "one node a rank, got 5 nodes for 4 ranks" in str(one)


@pytest.mark.parametrize(
    "algorithm",
    [DPSGD(), PowerGossip(), ChocoSGD(), ELIAS],
    ids=repr,
)
def test_neighbours_of_a_liar_name_it(tmp_path, algorithm):
    """Bytes of ones: NaN as float32, a length below 0, positions out of order."""
    with Ranks(4, tmp_path, timeout_s=2.0) as four:
        found = four.outcomes(cases.with_a_liar, algorithm, Topology.ring(4), 2)
    for rank in (1, 3):
        assert isinstance(found[rank], WireError), found[rank]
        assert str(found[rank]).startswith("node 2: message must")


@pytest.mark.parametrize("how", [cases.KILL, cases.STOP], ids=["killed", "stopped"])
def test_neighbours_of_a_rank_that_is_lost_name_it(tmp_path, how):
    with Ranks(4, tmp_path, timeout_s=8.0) as four:
        four.start(cases.die, Topology.ring(4), 2, how)
        for rank in (1, 3):
            error = four.answer(rank, timeout_s=30.0)
            assert isinstance(error, RankLostError), error
            assert error.ranks == [2] or how == cases.STOP
        error = four.answer(0, timeout_s=30.0)
        assert isinstance(error, RankLostError)
        assert set(error.ranks) <= {1, 3}
