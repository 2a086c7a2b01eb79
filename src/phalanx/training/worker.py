"""A worker in a process of its own, whichever engine started the process."""

import copy
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.training.drills import Role
from phalanx.training.gradients import PartitionGradients
from phalanx.training.job import Job
from phalanx.training.parcel import PackedDataset, Parcel


class Reply(NamedTuple):
    """What a worker sends in a round.

    Attributes:
        message: its message, packed; None if it sends nothing.
        loss: the mean loss that it claims over its partitions.
    """

    message: Parcel | None
    loss: float


def pack_job(job: Job) -> Job:
    """A job as it travels to workers: without the drill, on the CPU, tensors ready to be shared."""
    model = copy.deepcopy(job.model).cpu()
    if type(job.dataset) is TensorDataset:
        return replace(job.for_workers(), model=model, dataset=PackedDataset(job.dataset))
    return replace(job.for_workers(), model=model)


class Worker:
    """Computes the partitions of its row of the assignment, encodes them and sends one message.

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
        self._worker, self._job, self._device = worker, job, device
        self._gradients = PartitionGradients(job, chunk_size, device)
        self._owned = job.code.assignment[worker].nonzero().flatten().tolist()

    def compute(self, step: int, parameters: Parcel, role: Role | None = None) -> Reply:
        """The message of one round.

        Args:
            step: the round.
            parameters: the round's parameters, `(dim,)`.
            role: what to do if bad: other than an attack that reads the honest messages.
        """
        message, loss = self._honest(step, parameters)
        if role is not None:
            time.sleep(role.attack.delay_s)
            if not role.attack.sends:
                return Reply(None, loss)
            message = role.forge(message)
        return Reply(Parcel.pack(message), loss)

    def _honest(self, step: int, parameters: Parcel) -> tuple[Tensor, float]:
        # A copy: the parcel is lent, and a model may write to its parameters.
        values = parameters.unpack().to(self._device, copy=True)
        rows, losses = zip(*self._gradients.blocks(step, self._owned, values), strict=True)
        message = self._job.code.encode(self._worker, torch.cat(rows))
        return message, torch.cat(losses).double().cpu().mean().item()
