"""Training by a code on every rank, and by the whole batch in one process."""

import contextlib

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from ddp.cases import Net
from phalanx.coding import Uncoded
from phalanx.communication.point_to_point import Peers
from phalanx.ddp import CodedSampler, aggregate
from phalanx.ddp.sharded import ShardedAllReduce
from phalanx.ordering import Batches, RandomReshuffling
from phalanx.randomness import generator

SIZE = 30
EPOCHS, STEPS = 2, 4


def dataset():
    numbers = generator("coded", "data")
    points = torch.randn(SIZE * STEPS + 3, 6, generator=numbers)
    return TensorDataset(points, torch.randint(4, (len(points),), generator=numbers))


def corrupt(model, loss, how):
    if how == "negated":
        return -(3 + model.process_group.rank()) * loss
    if how == "not finite":
        return loss * torch.nan
    # A broken bit in one number of the gradient: only one rank decodes its column.
    change = torch.zeros(4)
    change[2] = 5.0
    return loss + (model.module.last.bias * change).sum()


def train(code, byzantine, how, ddp, micro=1):
    """Weights, and what the handle saw; Byzantine ranks corrupt every gradient."""
    rank, data, seen = dist.get_rank(), dataset(), []
    model = DistributedDataParallel(Net(), **({"bucket_cap_mb": 0.002} | ddp))
    coded = not isinstance(code, Uncoded)
    handle = aggregate(model, code) if coded else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    sampler = CodedSampler(len(data), code, batch_size=SIZE, seed=3)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        optimizer.zero_grad()
        for number, (points, classes) in enumerate(DataLoader(data, batch_sampler=sampler)):
            last = number % micro == micro - 1
            with contextlib.nullcontext() if last else model.no_sync():
                losses = nn.functional.cross_entropy(model(points), classes, reduction="none")
                loss = handle.loss(losses) if handle else losses.mean()
                (corrupt(model, loss, how) if rank in byzantine else loss).backward()
            if last:
                seen.append(handle.last if handle else None)
                optimizer.step()
                optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach(), seen


def train_alone(code, micro=1):
    """Weights by the mean loss of every global batch."""
    points, classes = dataset().tensors
    model, order = Net(), RandomReshuffling()
    batches = Batches(len(points), SIZE, code.num_partitions, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(EPOCHS * STEPS):
        parts = [order.samples(batches, step, one) for one in range(code.num_partitions)]
        chosen = torch.cat(parts)
        nn.functional.cross_entropy(model(points[chosen]), classes[chosen]).backward()
        if step % micro == micro - 1:
            optimizer.step()
            optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class Counting(Peers):
    """Counts the bytes that this rank sends: all, and those of small messages."""

    def __init__(self):
        super().__init__()
        self.sent = self.small = 0

    def swap(self, outgoing, incoming):
        for rank, part in enumerate(outgoing):
            if rank != self.rank:
                self.sent += part.nbytes
                self.small += part.nbytes if part.nbytes < 4096 else 0
        return super().swap(outgoing, incoming)


def bytes_sent(code, dim):
    """By this rank in one round, all and without the vectors' shards."""
    partials = torch.randn(code.num_partitions, dim, generator=generator("coded", "bytes"))
    peers = Counting()
    own = code.encode_all([partials])[peers.rank].clone()
    collective = ShardedAllReduce(code, peers, length=dim, max_pieces=1, dtype=own.dtype)
    collective.post(own)
    collective.finish(0)
    torch.testing.assert_close(own, partials.mean(dim=0), rtol=1e-3, atol=1e-5)
    return peers.sent, peers.small
