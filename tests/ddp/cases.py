"""What the processes run, and the slow obvious reference in one process."""

import contextlib
import io
import os
import signal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phalanx.communication.point_to_point import Peers
from phalanx.ddp import aggregate, robust_all_reduce
from phalanx.ddp.sharded import ShardedAllReduce
from phalanx.randomness import generator, seeded


def messages(num_ranks, dim, seed, dtype, bad=()):
    """The vectors of all ranks; those of bad ones hold a NaN somewhere."""
    rows = 3 + torch.randn(num_ranks, dim, generator=generator(seed, "messages"))
    for rank in bad:
        rows[rank, (7 * rank) % dim] = torch.nan
    return rows.to(dtype)


def all_reduce(rule, dim, dtype=torch.float32, rounds=2, bad=(), liars=0):
    """Answers and last state of some rounds."""
    state, answers = None, []
    for step in range(rounds):
        own = messages(dist.get_world_size(), dim, step, dtype, bad)[dist.get_rank()]
        before = own.clone()
        answer, state = robust_all_reduce(own, rule, state, num_byzantine_aggregators=liars)
        assert torch.equal(own.nan_to_num(), before.nan_to_num())
        answers.append(tuple(answer))
    return answers, state


class Net(nn.Module):
    """Layers of several sizes, of which some inputs leave out one."""

    def __init__(self, dtype=torch.float32, second=None, frozen=False):
        super().__init__()
        with seeded(3, "weights"):
            self.first = nn.Linear(6, 33, dtype=dtype)
            self.side = nn.Linear(33, 33, dtype=dtype)
            self.middle = nn.Linear(33, 17, dtype=second or dtype)
            self.last = nn.Linear(17, 4, dtype=dtype)
        self.first.bias.requires_grad_(not frozen)
        self.dtypes = dtype, second or dtype

    def forward(self, x, through_side=True):
        x = self.first(x.to(self.dtypes[0])).tanh()
        x = self.side(x).tanh() if through_side else x
        x = self.middle(x.to(self.dtypes[1])).tanh()
        return self.last(x.to(self.dtypes[0])).float()


def loss_of(model, rank, step, micro, use):
    """The loss of a rank on its own data; `use` says who goes through the side branch."""
    numbers = generator("data", rank, step, micro)
    inputs = torch.randn(8, 6, generator=numbers)
    targets = torch.randint(4, (8,), generator=numbers)
    through = {"all": True, "even": rank % 2 == 0, "none": False}[use]
    return nn.functional.cross_entropy(model(inputs, through), targets)


def flat_gradient(model):
    found = [p for p in model.parameters() if p.requires_grad]
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in found]
    )


def train(rule, net, ddp, steps=3, micro=1, use="all", bad=(), liars=0, saved=None):
    """Steps of SGD with the hook: gradients, weights, and what the handle saw."""
    rank, seen = dist.get_rank(), []
    model = DistributedDataParallel(Net(**net), **({"bucket_cap_mb": 0.002} | ddp))
    handle = aggregate(model, rule, num_byzantine_aggregators=liars)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = 0
    if saved is not None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        model.module.load_state_dict(state["model"])
        handle.load_state_dict(state["rule"])
        start = handle.num_steps
    gradients = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        for number in range(micro):
            last = number == micro - 1
            with contextlib.nullcontext() if last else model.no_sync():
                loss = loss_of(model, rank, step, number, use)
                (loss * torch.nan if rank in bad and step == 1 else loss).backward()
        gradients.append(flat_gradient(model.module).clone())
        seen.append(tuple(handle.last))
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.module.state_dict(), "rule": handle.state_dict()}, file)
    weights = nn.utils.parameters_to_vector(model.module.parameters()).detach()
    return gradients, weights, seen, file.getvalue(), handle.times_suspected


def train_alone(rule, num_ranks, net, steps=3, micro=1, use="all", bad=()):
    """The same in one process: the rule on the stacked gradients of all ranks."""
    model, gradients, answers, state = Net(**net), [], [], None
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for step in range(steps):
        rows = []
        for rank in range(num_ranks):
            optimizer.zero_grad()
            for number in range(micro):
                loss = loss_of(model, rank, step, number, use)
                (loss * torch.nan if rank in bad and step == 1 else loss).backward()
            rows.append(flat_gradient(model))
        rows = torch.stack(rows)
        state = rule.init(rows.shape[1], dtype=rows.dtype) if state is None else state
        answer, state = rule.update(rows, state)
        answers.append(answer)
        gradients.append(answer.value)
        pieces = answer.value.split([p.numel() for p in trained])
        for parameter, piece in zip(trained, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype).clone()
        optimizer.step()
    return gradients, nn.utils.parameters_to_vector(model.parameters()).detach(), answers


class Liar(Peers):
    """A rank that tells others something else than the code does, at one of its exchanges.

    Args:
        at: number of the exchange: 0 is the messages, the last the aggregate.
        to: ranks that are lied to.
    """

    def __init__(self, at, to):
        super().__init__()
        self.at, self.to, self.count = at, to, 0

    def swap(self, outgoing, incoming):
        if self.count == self.at:
            outgoing = [
                self.lie(part) if rank in self.to else part for rank, part in enumerate(outgoing)
            ]
        self.count += 1
        return super().swap(outgoing, incoming)

    def lie(self, part):
        return part + 1 + self.rank


def with_liars(rule, dim, liars, bound):
    """One round in which some ranks lie: `liars` maps a rank to what it lies about, and to whom."""
    rank = dist.get_rank()
    peers = Liar(*liars[rank]) if rank in liars else Peers()
    own = messages(peers.size, dim, 0, torch.float32)[rank].clone()
    collective = ShardedAllReduce(
        rule,
        peers,
        length=dim,
        max_pieces=2,
        dtype=own.dtype,
        num_byzantine_aggregators=bound,
    )
    collective.post(own[: dim // 3])
    collective.post(own[dim // 3 :])
    try:
        answer, outvoted = collective.finish(0)
    finally:
        dist.barrier()  # so that a rank that stops early is not taken for lost
    return own, answer.scores, outvoted


def die(rule, rank, how):
    """Steps until a rank is lost, once DDP has settled on its buckets."""
    model = DistributedDataParallel(Net(), bucket_cap_mb=0.002)
    aggregate(model, rule)
    for step in range(50):
        if dist.get_rank() == rank and step == 3:
            os.kill(os.getpid(), how)
        loss_of(model, rank, step, 0, "all").backward()


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
