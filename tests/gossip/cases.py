"""The algorithms and graphs that laws are checked for; and what the processes run."""

import os
import signal

import torch
import torch.distributed as dist

from phalanx.compression import (
    QSGD,
    HalfPrecision,
    PowerSGD,
    RandomBlock,
    RandomK,
    TopK,
    UniformQuantization,
)
from phalanx.gossip import (
    DPSGD,
    AllReduceAveraging,
    ChocoSGD,
    DeepSqueeze,
    Moniqua,
    ParameterGossip,
    PowerGossip,
    ProcessNetwork,
    Topology,
    average,
    mix,
)
from phalanx.optimizers import decentralize
from phalanx.randomness import generator, seeded

CENTRAL = [
    AllReduceAveraging(),
    DPSGD(),
    PowerGossip(),
    PowerGossip(rank=2, iterations=3, diffusion="optimal"),
    ChocoSGD(),
    ChocoSGD(RandomK(ratio=0.3, rescale=False), consensus_rate=0.2),
    DeepSqueeze(),
    Moniqua(bound=8.0),
]
MORE = [
    DPSGD("optimal"),
    PowerGossip(rank=2, warm_start=False),
    PowerGossip(signs=True, iterations=2),
    Moniqua(bound=8.0, bits=6, rounding="nearest", consensus_rate=0.7),
    ChocoSGD(TopK(ratio=0.2), consensus_rate=0.1),
    ChocoSGD(RandomBlock(ratio=0.3, rescale=False, shared=False), consensus_rate=0.2),
    ChocoSGD(QSGD(levels=127, norm="max"), consensus_rate=0.5),
    ChocoSGD(QSGD(bucket_size=5, levels=4, norm="max", coding="elias-sparse"), consensus_rate=0.2),
    ChocoSGD(PowerSGD(rank=1, min_compression=1.0), consensus_rate=0.2),
    DeepSqueeze(UniformQuantization(bucket_size=6, bits=4), consensus_rate=0.2),
    DeepSqueeze(HalfPrecision(), consensus_rate=0.5),
]
ALGORITHMS = [*CENTRAL, *MORE]

CROOKED = Topology.from_edges(6, [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (3, 5)])
TOPOLOGIES = [
    Topology.ring(2),
    Topology.ring(5),
    Topology.torus(2, 3),
    Topology.exponential(6),
    Topology.star(5),
    Topology.complete(4),
    CROOKED,
    Topology.from_weights([[0.7, 0.3, 0.0], [0.3, 0.2, 0.5], [0.0, 0.5, 0.5]]),
]


def tensors(num_nodes, seed=0, dtype=torch.float32):
    """Tensors of several forms at every node."""
    source = generator(seed, "tensors")
    shapes = {"matrix": (7, 9), "kernel": (4, 3, 2, 2), "bias": (7,), "one": (), "empty": (0, 3)}
    return {
        name: torch.randn(num_nodes, *shape, generator=source).to(dtype)
        for name, shape in shapes.items()
    }


def at(node, values):
    """The part of one node, the axis of the nodes kept."""
    return {name: x[node : node + 1] for name, x in values.items()}


def rounds(network, algorithm, values, steps, memory=None):
    """Rounds one after the other: values, memory, bytes of all of them."""
    sent = torch.zeros_like(network.bytes_sent)
    for _ in range(steps):
        values, memory, one = mix(algorithm, network, values, memory, seed=3)
        sent += one
    return values, memory, sent


def in_processes(algorithm, topology, steps):
    """Rounds of this process's node; a checkpoint in the middle makes no difference."""
    network = ProcessNetwork(topology)
    values = at(dist.get_rank(), tensors(topology.num_nodes))
    half = rounds(network, algorithm, values, steps // 2)
    saved = type(half[1]).from_state_dict(half[1].state_dict())
    rest = steps - steps // 2
    values, memory, sent = rounds(network, algorithm, half[0], rest, saved)
    return values, memory.state_dict(), (half[2] + sent).tolist()


def alike(algorithm, topology, seed):
    """What `ParameterGossip` says to ranks that are told different things."""
    model = torch.nn.Linear(3, 2)
    with_seed = seed if dist.get_rank() == 1 else 0
    network = ProcessNetwork(topology)
    return ParameterGossip(model.named_parameters(), algorithm, network, seed=with_seed).last_bytes


def model_of(node):
    with seeded(node, "weights"):
        return torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=False)
        )


def batch(node, step):
    source = generator(node, step, "batch")
    return torch.randn(5, 6, generator=source), torch.randint(3, (5,), generator=source)


def training(algorithm, topology, steps, first):
    """What a user's script does: its own model and data, one line for gossip; saved half-way."""
    node = dist.get_rank()

    def begin():
        model = model_of(node)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, decentralize(model, sgd, algorithm, topology, first=first, seed=3)

    model, optimizer = begin()
    losses = []
    for step in range(steps):
        if step == steps // 2:
            saved = model.state_dict(), optimizer.state_dict()
            model, optimizer = begin()
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        optimizer.zero_grad()
        inputs, targets = batch(node, step)
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    optimizer.gossip.synchronize()
    return losses, {name: x.detach() for name, x in model.named_parameters()}


def die(topology, victim, how):
    """Rounds for ever, but for one rank, which ends or stops in the second."""
    network = ProcessNetwork(topology)
    value = torch.ones(1, 40, 30) * dist.get_rank()
    memory = None
    for step in range(1000):
        if step == 1 and dist.get_rank() == victim:
            os.kill(os.getpid(), how)
        found = average(value, PowerGossip(), network, rounds=1, memory=memory)
        value, memory = found.values, found.memory


KILL, STOP = signal.SIGKILL, signal.SIGSTOP


class Forged(ProcessNetwork):
    """What a rank sends instead: NaN, or bytes that are no message."""

    def __init__(self, topology, liar):
        super().__init__(topology)
        self.liar = dist.get_rank() == liar

    def _exchange(self, outgoing, lengths):
        if self.liar:
            outgoing = [torch.full_like(row, 255) for row in outgoing]
        return super()._exchange(outgoing, lengths)


def with_a_liar(algorithm, topology, liar):
    mix(algorithm, Forged(topology, liar), at(dist.get_rank(), tensors(topology.num_nodes)))
