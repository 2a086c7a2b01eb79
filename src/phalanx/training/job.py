"""What one run computes, whichever engine runs it."""

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.attacks import Attack, Schedule
from phalanx.coding import Code
from phalanx.compression import Compressor
from phalanx.losses import Loss, classes_second
from phalanx.ordering.client_data import ClientData
from phalanx.transforms.compressed import MessageCodec
from phalanx.transforms.worker_momentum import WorkerMomentum


@dataclass(frozen=True)
class Job:
    """The stages before decoding: data, model, code and drill. Workers get a copy of it."""

    model: nn.Module
    """Architecture and buffers; its parameters are replaced by those of each round."""

    loss: Loss
    """Mean loss over a batch, from the model's output and the targets."""

    dataset: Dataset[tuple[Tensor, ...]]
    """Pairs of input and target."""

    code: Code
    """Who computes what, and what they send."""

    batch_size: int
    """Samples in a round, over all partitions; a multiple of `code.num_partitions`."""

    seed: int
    """Of order, drills and random layers."""

    attack: Attack | None = None
    """What bad workers do; None for no drill."""

    schedule: Schedule | None = None
    """Who is bad when; None for nobody."""

    worker_momentum: WorkerMomentum | None = None
    """What workers remember of their messages, and send; None for nothing."""

    shards: ClientData | None = None
    """Which samples each worker holds, one partition being its own; None if every sample may fall
    to everybody."""

    compressor: Compressor | None = None
    """How workers encode their messages; None to send them as they are."""

    @cached_property
    def codec(self) -> MessageCodec | None:
        """How messages look on the way; None if they are sent as they are.

        Tensors are those of the model, unless the code's messages have another width.
        """
        if self.compressor is None:
            return None
        named = {
            name: value for name, value in self.model.named_parameters() if value.requires_grad
        }
        dim = sum(value.numel() for value in named.values())
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        if (width := self.code.width(dim)) != dim:
            shapes = {"message": (width,)}
        dtype = next(iter(named.values())).dtype
        return MessageCodec(
            self.compressor,
            self.seed,
            self.code.num_workers,
            tuple(shapes),
            tuple(shapes.values()),
            dtype,
        )

    def byzantine(self, step: int) -> list[int]:
        """Ids of the workers that are bad in a round."""
        if self.attack is None or self.schedule is None:
            return []
        bad = self.schedule.byzantine(step, self.code.num_workers, self.seed)
        return bad.nonzero().flatten().tolist()

    def conduct(self, step: int) -> dict[int, Attack]:
        """What each bad worker of a round does."""
        if self.attack is None:
            return {}
        return {
            worker: self.attack.member(rank) for rank, worker in enumerate(self.byzantine(step))
        }

    def relabelled(self, attack: Attack) -> "Job":
        """The job of a worker that computes with the targets of an attack."""
        return replace(self, loss=_RelabelledLoss(self.loss, attack))

    def for_workers(self) -> "Job":
        """The part that a worker needs: the drill stays with whoever stages it."""
        return replace(self, attack=None, schedule=None)


@dataclass(frozen=True)
class _RelabelledLoss:
    """The loss under other targets; the model's output tells how many classes there are."""

    loss: Loss
    attack: Attack

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.ndim < 2:
            raise ValueError(
                f"model must score every class for {self.attack}, got outputs of shape "
                f"{tuple(outputs.shape)}"
            )
        return self.loss(outputs, self.attack.relabel(targets, classes_second(outputs).shape[1]))
