"""Gradient codes under `DistributedDataParallel`: the sampler, the loss and the decoder."""

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Sampler

from phalanx.aggregation import Aggregate, Shard, State
from phalanx.checks import require_at_least
from phalanx.coding import Code, DracoCyclic, DracoRepetition, LinearCode
from phalanx.ordering import Batches, Order, RandomReshuffling

ShardedCode = DracoCyclic | DracoRepetition | LinearCode
"""Codes that decode a shard of the columns of all messages as if it were all there is."""


class CodedSampler(Sampler[list[int]]):
    """Batch sampler of a gradient code: each rank's partitions of every global batch.

    Every step takes the next `batch_size` samples of the order, cut into the partitions of the
    code. A rank's batch is the samples of all partitions that the code assigns to it, in increasing
    order of partition, so that it has `batch_size / num_partitions` samples of each. The samples
    are those of `phalanx.train` with the same order, batch size and seed.

    For `DataLoader(dataset, batch_sampler=...)`. Call `set_epoch` before each epoch, as with
    torch's `DistributedSampler`. Samples that do not fill a last batch are left out.

    Raises:
        ValueError: if `num_samples` is below `batch_size`, `batch_size` no multiple of the code's
            partitions, the rank not a worker of the code, or the order one of clients that each
            have their own data.

    >>> from phalanx.coding import DracoCyclic
    >>> from phalanx.ddp import CodedSampler
    >>> from phalanx.ordering import ShuffleOnce
    >>> code = DracoCyclic(num_workers=3, num_byzantine=1)
    >>> [len(batch) for batch in CodedSampler(30, code, batch_size=6, rank=0)]
    [6, 6, 6, 6, 6]
    """

    def __init__(
        self,
        num_samples: int,
        code: Code,
        *,
        batch_size: int,
        order: Order = RandomReshuffling(),  # noqa: B008 - frozen
        seed: int = 0,
        rank: int | None = None,
    ) -> None:
        """Checks that all fits.

        Args:
            num_samples: samples in the data set.
            code: who computes what; a rank is a worker.
            batch_size: samples per step, over all partitions.
            order: in which samples are visited.
            seed: of the order; the same on all ranks.
            rank: whose batches; by default this process's rank.
        """
        rank = dist.get_rank() if rank is None else rank
        if not 0 <= rank < code.num_workers:
            raise ValueError(
                f"rank must be at least 0 and below the code's {code.num_workers} workers, got "
                f"{rank}"
            )
        require_at_least(1, batch_size=batch_size)
        if batch_size % code.num_partitions or num_samples < batch_size:
            raise ValueError(
                f"batch_size must be a multiple of the code's {code.num_partitions} partitions and "
                f"at most num_samples = {num_samples}, got {batch_size}"
            )
        if not order.shared:
            raise ValueError(f"order must share all samples among workers, got {order}")
        self.epoch = 0
        self._batches = Batches(num_samples, batch_size, code.num_partitions, seed)
        self._order = order
        self._owned = code.assignment[rank].nonzero().flatten().tolist()

    def set_epoch(self, epoch: int) -> None:
        """The epoch, from 0, whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Steps per epoch."""
        return self._batches.num_samples // self._batches.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the rank's samples, step by step."""
        for step in range(self.epoch * len(self), (self.epoch + 1) * len(self)):
            parts = [self._order.samples(self._batches, step, one) for one in self._owned]
            yield torch.cat(parts).tolist()


def message_loss(code: ShardedCode, rank: int, losses: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The loss whose gradient is a rank's message; see `GradientAggregation.loss`."""
    weights = _weights(code, rank).to(losses)
    if losses.ndim != 1 or len(losses) == 0 or len(losses) % len(weights):
        raise ValueError(
            f"losses must have shape (samples,), with equally many for each of the {len(weights)} "
            f"partitions of rank {rank}, got {tuple(losses.shape)}"
        )
    return losses.view(len(weights), -1).mean(dim=1) @ weights


@lru_cache(maxsize=16)
def _weights(code: ShardedCode, rank: int) -> Float[Tensor, " owned"]:
    encoding = code.encoding
    assert encoding is not None  # as `Decoder` has seen to
    return encoding[rank, code.assignment[rank]]


class Decoder:
    """A code's decoder, in the place of a robust rule.

    Attributes:
        code: the code.
        error: `Decoded.error` of the last round.
    """

    def __init__(self, code: ShardedCode) -> None:
        """Takes the code.

        Raises:
            ValueError: if its messages are not weighted sums of the partitions' gradients.
        """
        if code.width(1) != 1:
            raise ValueError(
                f"code must have messages that are real weighted sums of gradients, got {code}"
            )
        self.code, self.error = code, 0.0

    def num_tolerated(self, num_ranks: int) -> int:
        """Byzantine ranks that the code survives.

        Raises:
            ValueError: if the code is for another number of workers.
        """
        if num_ranks != self.code.num_workers:
            raise ValueError(
                f"code must be for {num_ranks} workers, one a rank, got {self.code.num_workers}"
            )
        return self.code.num_tolerated

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The number of the round alone: these codes have no memory."""
        return (torch.tensor(0),)

    def update_shard(
        self, messages: Float[Tensor, "workers width"], state: State, shard: Shard
    ) -> tuple[Aggregate, State]:
        """Decodes a shard of the columns; all shards come to the same verdict.

        Raises:
            DecodeError: if more is wrong than the code survives; on all shards.
        """
        decoded = self.code.decode(messages, shard=shard)
        self.error = decoded.error
        suspects = decoded.suspects.cpu()
        nobody = torch.zeros_like(suspects)
        answer = Aggregate(decoded.gradient, None, suspects.double(), nobody, suspects)
        return answer, (state[0] + 1,)
