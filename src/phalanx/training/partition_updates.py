"""Partition updates: vectorised or one by one, with the same result."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.attacks import Attack
from phalanx.computations import Broadcast, Objective, Samples
from phalanx.fetch import fetch
from phalanx.losses import Loss, classes_second
from phalanx.randomness import generator, seeded
from phalanx.training.job import Job
from phalanx.training.worker_state import WorkerState

State = tuple[Tensor, ...]

_BLOCK_BYTES = 2**28  # updates held beside the messages, if the chunk size is left to us


class Block(NamedTuple):
    """Updates of some partitions, in order.

    Attributes:
        updates: `(block, dim)`.
        losses: `(block,)`.
        states: what the computation remembers of each partition; empty if it remembers nothing.
    """

    updates: Float[Tensor, "block dim"]
    losses: Float[Tensor, " block"]
    states: tuple[State, ...] = ()


class PartitionUpdates:
    """Evaluator of a round's `Computation` on partitions.

    With `chunk_size` above one, several partitions are computed by one vectorised call; with one,
    one by one: the same kernels in every process and on every engine, so that runs agree to the
    bit. Models with random layers (dropout), those that `torch.func.vmap` cannot take (whose
    control flow depends on the data, say), and computations that are not vectorised are always
    computed one by one.

    Random layers, and data sets that draw from torch's generator when asked for a sample, are
    seeded by partition, so that replicas draw the same numbers.
    """

    def __init__(
        self, job: Job, chunk_size: int | None = None, device: torch.device | str | None = None
    ) -> None:
        self.job, self.device = job, device
        self.objective = Objective(job.model, job.loss, device)
        layout = self.objective.layout
        compute, self._moves = job.round.compute, job.round.order.moves
        together = compute.takes_clients if self._moves else compute.vectorised
        together = together and (self._moves or job.round.order.equal_sizes)
        together = together and not self.objective.is_random
        if not together or (chunk_size is None and self.objective.prefers_loops):
            chunk_size = 1
        elif chunk_size is None:
            row_bytes = layout.dim * layout.dtype.itemsize
            chunk_size = max(1, _BLOCK_BYTES // max(row_bytes, 1))
        self.chunk_size = chunk_size
        self._vectorises = False  # not known before it has been tried
        self._unfit = ""  # why not, until it has been told
        self.preparation: PartitionUpdates | None = None  # of what is computed first, if anything

    def blocks(
        self,
        step: int,
        partitions: Sequence[int],
        broadcast: Broadcast,
        states: Mapping[int, State] | None = None,
        attack: Attack | None = None,
    ) -> Iterator[Block]:
        """Updates of the partitions, in order, `chunk_size` at a time.

        Args:
            step: the round.
            partitions: which.
            broadcast: of the round.
            states: what the computation remembers, by partition; of those not in it, nothing.
            attack: of the worker that computes, which may do so otherwise, or with other targets.
        """
        objective, compute = self.objective, self.job.round.compute
        if attack is not None and attack.relabels:
            objective = objective.with_loss(_RelabelledLoss(objective.loss, attack))
        other = attack.computation if attack is not None else None
        compute = compute if other is None else other
        device = broadcast.parameters.device
        for start in range(0, len(partitions), self.chunk_size):
            chunk = partitions[start : start + self.chunk_size]
            remembered = [
                (states or {}).get(one) or self.placed({"": compute.init(objective.layout)})[""]
                for one in chunk
            ]
            with _placed(step, chunk):
                batch = self._batch(step, chunk, device)
                found = None
                if len(chunk) > 1 and other is None:
                    found = self._together(objective, broadcast, batch, remembered, step, chunk)
            if found is not None:
                yield found
                continue
            for partition, own, state in zip(chunk, batch, remembered, strict=True):
                draws = self._draws(step, partition)
                with _placed(step, [partition]), seeded(self.job.seed, "layers", step, partition):
                    done = compute.compute(objective, broadcast, own, state, draws)
                yield Block(done.update.unsqueeze(0), done.loss.reshape(1), (done.state,))
            self._tell_unfit()

    def placed(self, state: WorkerState) -> WorkerState:
        """What is remembered, where this process computes."""
        if self.device is None:
            return state
        return {name: tuple(one.to(self.device) for one in parts) for name, parts in state.items()}

    def _draws(self, step: int, partition: int) -> torch.Generator:
        return generator(self.job.seed, "computation", step, partition)

    def received(self, broadcast: Broadcast) -> Broadcast:
        """A broadcast where this process computes: a copy, if it was lent by another process."""
        if self.device is None:
            return broadcast
        extra = {name: one.to(self.device) for name, one in broadcast.extra.items()}
        # A copy: what is lent must stay as it is, and a model may write to its parameters.
        return Broadcast(broadcast.parameters.to(self.device, copy=True), extra)

    def _together(
        self,
        objective: Objective,
        broadcast: Broadcast,
        batch: Sequence[Samples],
        states: Sequence[State],
        step: int,
        chunk: Sequence[int],
    ) -> Block | None:
        """Updates and losses by one call; None if the model turns out to be unfit for it."""
        compute = self.job.round.compute
        try:
            if self._moves:
                draws = [self._draws(step, one) for one in chunk]
                done = compute.compute_clients(objective, broadcast, batch, states, draws)
                updates, losses, states = zip(*done, strict=True)
                found = Block(torch.stack(updates), torch.stack(losses), states)
            else:
                inputs, targets = (_stacked(parts) for parts in zip(*batch, strict=True))
                found = Block(*compute.compute_many(objective, broadcast, Samples(inputs, targets)))
        except RuntimeError as error:
            if self._vectorises or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.chunk_size = 1
            self._unfit = next(iter(str(error).splitlines()), type(error).__name__)
            return None
        self._vectorises = True
        return found

    def _tell_unfit(self) -> None:
        """Once all has been done one by one: what fails there, too, is not vmap's fault."""
        if self._unfit:
            reason, self._unfit = self._unfit, ""
            warnings.warn(
                "the model's gradients are computed one by one, which is slower, because vmap "
                f"cannot take it: {reason} (chunk_size=1 asks for it, without this warning)",
                stacklevel=3,
            )

    def _batch(self, step: int, partitions: Sequence[int], device: torch.device) -> list[Samples]:
        """The samples of the partitions, asked for at once."""
        job = self.job
        samples = [job.round.order.samples(job.batches, step, one) for one in partitions]
        if type(job.dataset) is TensorDataset:
            parts = fetch(job.dataset, torch.cat(samples))
            sizes = [len(own) for own in samples]
            pieces = [part.to(device).split(sizes) for part in parts]
            return [Samples(*own) for own in zip(*pieces, strict=True)]
        batches = []
        for partition, own in zip(partitions, samples, strict=True):
            with seeded(job.seed, "samples", step, partition):  # it may crop or flip at random
                inputs, targets = fetch(job.dataset, own)
            batches.append(Samples(inputs.to(device), targets.to(device)))
        return batches


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one, without a copy if they are the pieces of one already."""
    whole: Tensor | None = parts[0]._base
    if whole is not None and len(whole) == sum(map(len, parts)):
        folded: Tensor = whole.unflatten(0, (len(parts), -1))
        return folded
    return torch.stack(list(parts))


@contextmanager
def _placed(step: int, partitions: Sequence[int]) -> Iterator[None]:
    """Notes of an exception in the user's model, loss or data where it was met."""
    try:
        yield
    except Exception as error:
        first, last = partitions[0], partitions[-1]
        which = f"partition {first}" if first == last else f"partitions {first} to {last}"
        error.add_note(f"met in round {step}, with the samples of {which}")
        raise


class _RelabelledLoss:
    """Loss under relabelled targets; the model's output says how many classes there are."""

    def __init__(self, loss: Loss, attack: Attack) -> None:
        self._loss, self._attack = loss, attack

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.ndim < 2:
            raise ValueError(
                f"model must score every class for {self._attack}, got outputs of shape "
                f"{tuple(outputs.shape)}"
            )
        classes = classes_second(outputs).shape[1]
        return self._loss(outputs, self._attack.relabel(targets, classes))
