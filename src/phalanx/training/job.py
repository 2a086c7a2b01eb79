"""Training job: a round with its model, loss and data, for any engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.attacks import Attack
from phalanx.losses import Loss
from phalanx.ordering import Batches
from phalanx.parameters import ParameterLayout
from phalanx.training.round import Round
from phalanx.training.server_step import OptimizerStep
from phalanx.transforms import Chain


@dataclass(frozen=True)
class Job:
    """Training job: round, model, loss, data and seed. Workers get a copy of it."""

    model: nn.Module
    """Architecture and buffers; its parameters are replaced by those of each round."""

    loss: Loss
    """Mean loss over a batch, from the model's output and the targets."""

    dataset: Dataset[tuple[Tensor, ...]]
    """Pairs of input and target."""

    round: Round
    """The stages."""

    batch_size: int
    """Samples per round, over all partitions; a multiple of `round.code.num_partitions`."""

    seed: int
    """Of order, attacks, random layers and all else that is random."""

    @cached_property
    def layout(self) -> ParameterLayout:
        """Of the model's trained parameters."""
        return ParameterLayout.of(self.model)

    @cached_property
    def sent(self) -> ParameterLayout:
        """Of an update: the parameters, as often as the computation says."""
        own, number = self.layout, self.round.compute.num_vectors
        if number == 1:
            return own
        names = tuple(f"{place}.{name}" for place in range(number) for name in own.names)
        return ParameterLayout(names, own.shapes * number, own.dtype)

    def fitted(self, sizes: Sequence[int] = ()) -> "Job":
        """The same job, with the aggregation protocol fitted to clients of such sizes.

        Raises:
            ValueError: if it does not fit them.
        """
        stages, number = self.round, self.round.code.num_workers
        if stages.aggregation is None:
            return self
        width = self.sent.dim
        found = stages.aggregation.fitted(number, width, sizes, weighted=stages.weighted)
        return replace(self, round=replace(stages, aggregation=found))

    @cached_property
    def preparing(self) -> "Job":
        """The job of what workers compute first; see `Round.preparation`."""
        assert self.round.preparation is not None
        return replace(self, round=replace(self.round, compute=self.round.preparation))

    def clients(self, step: int) -> Sequence[int]:
        """Whose data the partitions of a round are; see `Order.clients`."""
        return self.round.order.clients(step, self.round.code.num_workers, self.seed)

    def weights(self, step: int) -> Tensor | None:
        """How much each worker's update counts in a round, `(workers,)`; None if all alike."""
        if not self.round.weighted:
            return None
        sizes = [self.round.order.num_held(one) for one in self.clients(step)]
        return torch.tensor(sizes, dtype=torch.float64)

    @property
    def num_clients(self) -> int:
        """Clients in all, of whom some may take part in a round."""
        return self.round.order.pool_size(self.round.code.num_workers)

    @cached_property
    def batches(self) -> Batches:
        """How the samples of a round are cut."""
        size = len(self.dataset)  # type: ignore[arg-type]
        return Batches(size, self.batch_size, self.round.code.num_partitions, self.seed)

    @cached_property
    def chain(self) -> Chain:
        """The transforms of messages.

        Messages consist of the model's tensors, unless the code's have another width or dtype.
        """
        layout, code = self.sent, self.round.code
        width, dtype = code.width(layout.dim), code.message_dtype(layout.dtype)
        if (width, dtype) != (layout.dim, layout.dtype):
            layout = ParameterLayout(("message",), ((width,),), dtype)
        return Chain(tuple(self.round.transforms), layout, self.seed, code.num_workers)

    @property
    def remembers(self) -> bool:
        """Whether workers may remember anything from round to round."""
        return bool(self.round.transforms or self.round.compute.init(self.layout))

    def empty_table(self, device: torch.device) -> Tensor:
        """Room for the messages of all workers, `(workers, width)`."""
        layout = self.chain.layout
        shape = (self.round.code.num_workers, layout.dim)
        return torch.empty(shape, dtype=layout.dtype, device=device)

    def conduct(self, step: int) -> dict[int, Attack]:
        """What each Byzantine worker of a round does, by id."""
        return self.round.conduct(step, self.seed)

    def for_workers(self) -> "Job":
        """The part that workers need: attacks and steps stay with the server."""
        alone = replace(self.round, attack=None, byzantine=None, step=OptimizerStep())
        return replace(self, round=alone)
