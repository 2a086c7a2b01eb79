"""What the processes run with compressed gradients, and the reference in one process."""

import contextlib
import io
import os
import signal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp.cases import Net, flat_gradient, loss_of
from phalanx.communication import simulate_collectives
from phalanx.compression import (
    ErrorFeedback,
    TensorStates,
    TwoStage,
    Uncompressed,
    gather,
    simulate,
)
from phalanx.ddp import compress
from phalanx.optimizers import OneBitAdam

SEED = 5


def wrapped(net, ddp):
    model = DistributedDataParallel(Net(**net), **({"bucket_cap_mb": 0.002} | ddp))
    return model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def backward(model, rank, step, micro, use, bad):
    """Several backward passes of which the last one synchronises."""
    for number in range(micro):
        silent = isinstance(model, DistributedDataParallel) and number < micro - 1
        with model.no_sync() if silent else contextlib.nullcontext():
            loss = loss_of(model, rank, step, number, use)
            (loss * torch.nan if rank in bad and step == 1 else loss).backward()


def checkpoint(model, handle):
    file = io.BytesIO()
    torch.save({"model": model.module.state_dict(), "handle": handle.state_dict()}, file)
    return file.getvalue()


def train(
    compressor, net, ddp, steps=3, micro=1, use="all", bad=(), saved=None, tail=0, at=None, **hook
):
    """Steps of SGD with the hook; gradients, steps and verdicts, weights, and a checkpoint.

    Args:
        saved: a checkpoint of every rank.
        tail: number of steps, at the end, of which gradients are returned; 0 for all.
        at: rank and step in which it dies.
    """
    rank = dist.get_rank()
    model, optimizer = wrapped(net, ddp)
    handle = compress(model, compressor, seed=SEED, **hook)
    if saved is not None:
        state = torch.load(io.BytesIO(saved[rank]), weights_only=True)
        model.module.load_state_dict(state["model"])
        handle.load_state_dict(state["handle"])
    gradients, seen, kept = [], [], None
    for step in range(handle.num_steps, handle.num_steps + steps):
        if at is not None and at[1] == step:
            if rank == at[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            kept = checkpoint(model, handle)
        optimizer.zero_grad()
        try:
            backward(model, rank, step, micro, use, bad)
        except Exception as error:
            if kept is None:
                raise
            return type(error), str(error), kept
        gradients.append(flat_gradient(model.module).clone())
        seen.append((handle.last, handle.verdict))
        if gradients[-1].isfinite().all():
            optimizer.step()
    weights = nn.utils.parameters_to_vector(model.module.parameters()).detach()
    return gradients[-tail:], seen, weights, checkpoint(model, handle)


def train_alone(
    compressor, num_ranks, net, steps=3, micro=1, use="all", bad=(), rule=None, unused=False
):
    """The same in one process: gradients, those before compression, weights and memories."""
    model, memories, state = Net(**net), [TensorStates()] * num_ranks, None
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(named.values(), lr=0.1)
    gradients, exact = [], []
    for step in range(steps):
        rows = []
        for rank in range(num_ranks):
            optimizer.zero_grad()
            backward(model, rank, step, micro, use, bad)
            rows.append(
                {
                    name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                    for name, p in named.items()
                }
            )
        exact.append({name: torch.stack([row[name] for row in rows]).mean(0) for name in named})
        used = [name for name in named if not unused or any(row[name].any() for row in rows)]
        sent = [{name: row[name] for name in used} for row in rows]
        if rule is None:
            means, memories = simulate(compressor, sent, memories, seed=SEED)
            mean = means[0]
        else:
            workers = [
                gather(compressor, row, memory, seed=SEED, worker=rank, num_workers=num_ranks)
                for rank, (row, memory) in enumerate(zip(sent, memories, strict=True))
            ]
            found = simulate_collectives(workers)
            memories = [memory for _, memory in found]
            flat = torch.stack([row_of(one, named) for one in found[0][0]])
            state = rule.init(flat.shape[1]) if state is None else state
            answer, state = rule.update(flat, state)
            pieces = answer.value.split([named[name].numel() for name in sorted(named)])
            mean = {
                name: piece.view_as(named[name])
                for name, piece in zip(sorted(named), pieces, strict=True)
            }
        for name, parameter in named.items():
            parameter.grad = mean.get(name)
        gradients.append(flat_gradient(model).clone())
        optimizer.step()
    return gradients, exact, nn.utils.parameters_to_vector(model.parameters()).detach(), memories


def row_of(tensors, named):
    if tensors is None:
        return torch.full((sum(p.numel() for p in named.values()),), torch.nan)
    return torch.cat([tensors[name].flatten() for name in sorted(named)])


def adam(steps, freeze_step):
    """Weights after steps of an optimizer that averages by itself."""
    model = Net()
    optimizer = OneBitAdam(model.named_parameters(), 0.01, freeze_step=freeze_step, seed=SEED)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, dist.get_rank(), step, 0, "all").backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def adam_alone(num_ranks, steps, freeze_step):
    """The same in one process, as it is written."""
    model, memories = Net(), [TensorStates()] * num_ranks
    named = dict(model.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in named.items()}
    second = {name: torch.zeros_like(p) for name, p in named.items()}
    for step in range(steps):
        rows, frozen = [], step >= freeze_step
        for rank in range(num_ranks):
            gradients = torch.autograd.grad(loss_of(model, rank, step, 0, "all"), named.values())
            own = dict(zip(named, gradients, strict=True))
            rows.append(
                {name: 0.9 * first[name] + 0.1 * own[name] for name in named} if frozen else own
            )
        how = ErrorFeedback(TwoStage()) if frozen else Uncompressed()
        (mean, *_), memories = simulate(how, rows, memories, seed=SEED)
        for name, parameter in named.items():
            if frozen:
                first[name] = mean[name]
            else:
                first[name] = 0.9 * first[name] + 0.1 * mean[name]
                second[name] = 0.999 * second[name] + 0.001 * mean[name] ** 2
            root = (second[name] / (1 - 0.999 ** min(step + 1, freeze_step))).sqrt() + 1e-8
            parameter.data -= 0.01 / (1 - 0.9 ** (step + 1)) * first[name] / root
    return nn.utils.parameters_to_vector(model.parameters()).detach()
