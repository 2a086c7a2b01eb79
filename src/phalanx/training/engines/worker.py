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
from phalanx.communication.serialization import PackedDataset, SharedTensor
from phalanx.computations.gradient import PartitionGradients
from phalanx.errors import NotFiniteError
from phalanx.training.attack_simulation import Role
from phalanx.training.job import Job
from phalanx.transforms.compressed import States

_Block = TypeVar("_Block")


class RoundOver(Exception):
    """What a worker computes is of no use to anybody any more."""


class Reply(NamedTuple):
    """What a worker sends in a round.

    Attributes:
        message: its message, packed; None if it sends nothing.
        loss: the mean loss that it claims over its partitions.
        momentum: the momentum of a bad worker of a drill, which forges its message; None where it
            is the message, where messages are compressed, or there is none.
        missing: why it sends nothing, if so.
    """

    message: SharedTensor | None
    loss: float
    momentum: SharedTensor | None = None
    missing: str = "silent"


class Recollection(NamedTuple):
    """What a worker remembers between rounds, packed.

    Attributes:
        momentum: its momentum; None if it has none.
        compression: what its compressor remembers, by tensor of the message.
    """

    momentum: SharedTensor | None
    compression: tuple[tuple[SharedTensor, ...], ...]


class _Held(NamedTuple):
    """The same, before a round."""

    step: int
    momentum: Tensor | None
    compression: States


def pack_job(job: Job) -> Job:
    """A job as it travels to workers: without the drill, on the CPU, tensors ready to be shared."""
    model = copy.deepcopy(job.model).cpu()
    if type(job.dataset) is TensorDataset:
        return replace(job.for_workers(), model=model, dataset=PackedDataset(job.dataset))
    return replace(job.for_workers(), model=model)


class Worker:
    """Computes the partitions that the round's assignment gives it and sends one message.

    It keeps its momentum, if workers have one, and what its compressor remembers from task to task.

    Cost: memory for the gradients that it owns, `(owned, dim)`; with a compressor, for what it
    remembers twice, before and after the last round, so that a checkpoint may go back a round.
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
        self._codec = self._gradients.job.codec
        self._momentum: Tensor | None = None
        self._compression: States = ()
        self._history: tuple[_Held, ...] = ()

    def compute(
        self,
        step: int,
        parameters: SharedTensor,
        role: Role | None = None,
        known: Recollection | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """The message of one round.

        Args:
            step: the round that is computed; an earlier one than `role.step` if it is to be behind.
            parameters: that round's parameters, `(dim,)`.
            role: what to do if bad: other than an attack that reads the honest messages.
            known: what the server knows of this worker's memory, for a process that starts; None
                to go on with its own.
            is_over: asked before each block of gradients: whether nobody waits for the message any
                more. The worker then drops its task, and replies with no message.
        """
        if known is not None:
            self._take(known)
        # A copy: the parcel is lent, and a model may write to its parameters.
        values = parameters.unpack().to(self._device, copy=True)
        attack = role.attack if role is not None else None
        try:
            message, loss = own_message(
                self._gradients, self._worker, step, values, attack, is_over=is_over
            )
        except RoundOver:
            return Reply(None, math.nan)
        present = step if role is None else role.step  # not that of one who is behind
        before = _Held(present, self._momentum, self._compression)
        kept = None
        if self._gradients.job.worker_momentum is not None:
            message = self._gradients.job.worker_momentum.update(message, self._momentum)
            self._momentum = message
            kept = SharedTensor.pack(message) if role is not None and self._codec is None else None
        data = message
        if self._codec is not None:
            try:
                data, self._compression = self._codec.encode(
                    message, self._compression, present, self._worker
                )
            except NotFiniteError:
                return Reply(None, loss, missing="not finite")
            finally:
                after = _Held(present + 1, self._momentum, self._compression)
                self._history = (before, after)
        if role is not None:
            time.sleep(role.attack.delay_s)
            if not role.attack.sends:
                return Reply(None, loss, kept)
            data = role.forge(message)
            if self._codec is not None:
                data = self._codec.forge(data, present, self._worker)
        return Reply(SharedTensor.pack(data), loss, kept)

    def recall(self, step: int) -> Recollection | None:
        """What the worker remembered before this round, or since the last one that it computed.

        For workers that compress; may be asked on another thread. None if nothing is known.
        """
        known = [one for one in self._history if one.step <= step]
        if not known:
            return None
        _, momentum, compression = known[-1]
        return Recollection(
            None if momentum is None else SharedTensor.pack(momentum),
            tuple(tuple(SharedTensor.pack(part) for part in state) for state in compression),
        )

    def _take(self, known: Recollection) -> None:
        """Goes on with what the server knows; copies, since parcels are lent."""
        if known.momentum is not None:
            self._momentum = known.momentum.unpack().to(self._device, copy=True)
        self._compression = tuple(
            tuple(part.unpack().to(self._device, copy=True) for part in state)
            for state in known.compression
        )
        self._history = (_Held(0, self._momentum, self._compression),)


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
