"""A worker in a process of its own, whichever engine started the process."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.attacks import Attack
from phalanx.training.drills import Role
from phalanx.training.gradients import PartitionGradients
from phalanx.training.job import Job
from phalanx.training.parcel import PackedDataset, Parcel

_Block = TypeVar("_Block")


class RoundOver(Exception):
    """What a worker computes is of no use to anybody any more."""


class Reply(NamedTuple):
    """What a worker sends in a round.

    Attributes:
        message: its message, packed; None if it sends nothing.
        loss: the mean loss that it claims over its partitions.
        momentum: the momentum of a bad worker of a drill, which forges its message; None where it
            is the message, or there is none.
    """

    message: Parcel | None
    loss: float
    momentum: Parcel | None = None


def pack_job(job: Job) -> Job:
    """A job as it travels to workers: without the drill, on the CPU, tensors ready to be shared."""
    model = copy.deepcopy(job.model).cpu()
    if type(job.dataset) is TensorDataset:
        return replace(job.for_workers(), model=model, dataset=PackedDataset(job.dataset))
    return replace(job.for_workers(), model=model)


class Worker:
    """Computes the partitions that the round's assignment gives it and sends one message.

    It keeps its momentum, if workers have one, from task to task.

    Cost: memory for the gradients that it owns, `(owned, dim)`.
    """

    def __init__(
        self,
        worker: int,
        job: Job,
        chunk_size: int | None,
        threads: int,
        device: torch.device | str,
    ) -> None:
        """Makes the process ready.

        Args:
            worker: id.
            job: as `pack_job` gives it.
            chunk_size: partitions whose gradients are computed by one call.
            threads: of torch, in this process.
            device: where to compute.
        """
        torch.set_num_threads(threads)
        if isinstance(job.dataset, PackedDataset):
            job = replace(job, dataset=job.dataset.unpack())
        self._worker, self._device = worker, device
        self._gradients = PartitionGradients(job, chunk_size, device)
        self._momentum: Tensor | None = None

    def compute(
        self,
        step: int,
        parameters: Parcel,
        role: Role | None = None,
        momentum: Parcel | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """The message of one round.

        Args:
            step: the round that is computed; an earlier one than `role.step` if it is to be behind.
            parameters: that round's parameters, `(dim,)`.
            role: what to do if bad: other than an attack that reads the honest messages.
            momentum: what the server knows of this worker's, for a process that starts; None to go
                on with its own.
            is_over: asked before each block of gradients: whether nobody waits for the message any
                more. The worker then drops its task, and replies with no message.
        """
        if momentum is not None:
            self._momentum = momentum.unpack().to(self._device, copy=True)
        # A copy: the parcel is lent, and a model may write to its parameters.
        values = parameters.unpack().to(self._device, copy=True)
        attack = role.attack if role is not None else None
        try:
            message, loss = own_message(
                self._gradients, self._worker, step, values, attack, is_over=is_over
            )
        except RoundOver:
            return Reply(None, math.nan)
        kept = None
        if self._gradients.job.worker_momentum is not None:
            message = self._gradients.job.worker_momentum.update(message, self._momentum)
            self._momentum = message
            kept = Parcel.pack(message) if role is not None else None
        if role is not None:
            time.sleep(role.attack.delay_s)
            if not role.attack.sends:
                return Reply(None, loss, kept)
            message = role.forge(message)
        return Reply(Parcel.pack(message), loss, kept)


def own_message(
    gradients: PartitionGradients,
    worker: int,
    step: int,
    parameters: Float[Tensor, " dim"],
    attack: Attack | None,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Float[Tensor, " width"], float]:
    """What a worker computes by itself: its message, and the mean loss over its partitions.

    Args:
        gradients: how it computes.
        worker: its id.
        step: the round.
        parameters: the round's, `(dim,)`.
        attack: what it carries out, if it is bad; its targets may be other than the true ones.
        is_over: asked before each block of gradients: whether nobody waits for it any more.

    Raises:
        RoundOver: once `is_over`.
    """
    job = gradients.job
    if attack is not None and attack.relabels:
        gradients = PartitionGradients(
            job.relabelled(attack), gradients.chunk_size, parameters.device
        )
    code = job.code.at(step)
    owned = code.assignment[worker].nonzero().flatten().tolist()
    blocks = gradients.blocks(step, owned, parameters)
    rows, losses = zip(*_unless(is_over, blocks), strict=True)
    return code.encode(worker, torch.cat(rows)), torch.cat(losses).double().cpu().mean().item()


def _unless(is_over: Callable[[], bool], blocks: Iterator[_Block]) -> Iterator[_Block]:
    """The blocks, computed one by one, until somebody says that it is over."""
    while not is_over():
        try:
            yield next(blocks)
        except StopIteration:
            return
    raise RoundOver
