"""What the processes run: rank 1 is told something else than the others."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phalanx.aggregation import CenteredClipping, CoordinateMedian, Mean, TrimmedMean
from phalanx.communication.agreement import StepCheck, require_agreement
from phalanx.communication.point_to_point import Peers
from phalanx.compression import PowerSGD, TopK, Uncompressed
from phalanx.ddp import aggregate, compress, robust_all_reduce
from phalanx.gossip import ParameterGossip, PowerGossip, ProcessNetwork, Topology
from phalanx.optimizers import OneBitAdam, decentralize
from phalanx.pipeline import CompressedPipeline


def odd():
    return dist.get_rank() == 1


def rules():
    aggregate(DistributedDataParallel(nn.Linear(3, 2)), TrimmedMean(0) if odd() else Mean())


def fields():
    rule = CenteredClipping(radius=2.0 if odd() else 1.0)
    robust_all_reduce(torch.ones(3), rule)


def lengths():
    robust_all_reduce(torch.ones(4 if odd() else 3), CoordinateMedian())


def hooks():
    model = DistributedDataParallel(nn.Linear(3, 2))
    if odd():
        return compress(model, Uncompressed())
    return aggregate(model, Mean())


def compressors():
    compress(DistributedDataParallel(nn.Linear(9, 9)), PowerSGD(2 if odd() else 1))


def gossips():
    model = nn.Linear(3, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    decentralize(model, sgd, PowerGossip(2 if odd() else 1))


def models():
    model = nn.Linear(3, 4 if odd() else 2)
    OneBitAdam(model.named_parameters()).step()


def stages():
    parts = [nn.Linear(4, 4) for _ in range(dist.get_world_size())]
    CompressedPipeline(
        parts, torch.zeros(1, 4), nn.functional.mse_loss, num_samples=8, warmup_epochs=1 + odd()
    )


DIFFER = {
    rules: "rule is .*Mean",
    fields: r"rule is CenteredClipping\(radius=1.0",
    lengths: "length is 3 on",
    hooks: "hook is 'aggregate' on .* 'compress' on",
    compressors: r"compressor is PowerSGD\(rank=1",
    gossips: r"algorithm is PowerGossip\(rank=1",
    models: r"parameters is .*\(2, 3\)",
    stages: "warmup_epochs is 1 on .* 2 on",
}


def texts():
    """Any facts, addresses of functions, long values, and nothing at all."""
    peers, size = Peers(), dist.get_world_size()
    require_agreement(peers, {"loss": lambda: None, "long": "x" * 100_000})
    for facts in ({"a": dist.get_rank() // 2}, {} if odd() else {"b": "y" * 300}):
        try:
            require_agreement(peers, facts)
        except ValueError as error:
            yielded = str(error), error.ranks
        else:
            yielded = None
        if "a" in facts:
            first = yielded
    return size, first, yielded


def numbers():
    """Steps that are the same, and one that is not; then the group is still in step."""
    peers = Peers()
    StepCheck(peers, 7).finish()
    try:
        StepCheck(peers, 8 if odd() else 7).finish()
    except ValueError as error:
        found = str(error), error.ranks
    StepCheck(peers, 9).finish()
    return found


def resumed_ddp(kind):
    """One rank goes on from another checkpoint than the others."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    handle = compress(model, TopK(0.5)) if kind == "compress" else aggregate(model, Mean())
    for step in range(3):
        if step == 1:
            saved = handle.state_dict()
        if step == 2 and odd():
            handle.load_state_dict(saved)
        model.zero_grad()
        model(torch.ones(2, 3)).sum().backward()


def resumed_gossip(wide):
    """Likewise; messages of the round have another length there."""
    model = nn.Linear(3 if wide else 9, 9 if wide else 3, bias=False)
    network = ProcessNetwork(Topology.ring(dist.get_world_size()))
    gossip = ParameterGossip(model.named_parameters(), PowerGossip(), network)
    for step in range(3):
        if step == 1:
            saved = gossip.state_dict()
        if step == 2 and odd():
            gossip.load_state_dict(saved)
        gossip.mix()


def resumed_adam():
    model = nn.Linear(3, 2)
    optimizer = OneBitAdam(model.named_parameters())
    for step in range(3):
        if step == 1:
            saved = optimizer.state_dict()
        if step == 2 and odd():
            optimizer.load_state_dict(saved)
        for one in model.parameters():
            one.grad = torch.ones_like(one)
        optimizer.step()


def scaled(make):
    """A user's loop with mixed precision, in which one rank overflows once."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    if make == "adam":
        optimizer = OneBitAdam(model.named_parameters(), lr=0.1)
    else:
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = decentralize(model, sgd, PowerGossip(), first=make)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        optimizer.zero_grad()
        torch.manual_seed(10 * dist.get_rank() + step)
        loss = model(torch.randn(8, 4)).square().mean()
        scaler.scale(loss * (float("inf") if odd() and step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def ends_early():
    """One rank has a batch less than the others, and is gone."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    aggregate(model, Mean())
    for _ in range(2 if odd() else 3):  # before that DDP itself would be the first to wait
        model(torch.ones(2, 3)).sum().backward()
