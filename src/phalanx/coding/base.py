"""Gradient code interface: assignment, encoder and decoder."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from phalanx.errors import TooManyByzantineError

State = tuple[Tensor, ...]
"""What a code remembers between rounds; empty for a code without memory."""


class Decoded(NamedTuple):
    """Decoded gradient, with the suspected workers and the error.

    Attributes:
        gradient: `(dim,)`, the mean of the gradients of all partitions.
        suspects: `(workers,)` bool, the workers whose messages arrived and are wrong for certain:
            in every explanation of the messages with no more Byzantine workers than the bound. An
            honest worker is never among them, whatever Byzantine workers within the bound send.
        residual: the largest relative disagreement among the messages that were trusted: 0 where
            they agree to the bit; what remains below the decoder's tolerance otherwise.
        error: what messages that are missing, or lies too small to be told from rounding or from
            what honest replicas differ by, may have cost: the distance between `gradient` and the
            mean is at most `error` times the root mean square of the norms of the partitions'
            gradients. 0 from codes that compare bits; rules that are no codes estimate none. With
            fixed-point messages, what rounding to these costs is in it.
        outliers: `(workers,)` bool, the workers that a rule left out or a vote went against, and
            that may be honest for all that: suspicion without proof, none of them a suspect. None
            from codes that have no such opinion.
        saturated: coordinates of the partitions' gradients that were too large for fixed-point
            messages, and were cut down to the largest that fits.
    """

    gradient: Float[Tensor, " dim"]
    suspects: Bool[Tensor, " workers"]
    residual: float
    error: float = 0.0
    outliers: Bool[Tensor, " workers"] | None = None
    saturated: int = 0


@dataclass(frozen=True)
class Code(ABC):
    """A gradient code: an assignment of partitions to workers, an encoder and a decoder.

    The code holds hyper-parameters only and never changes. One that is drawn anew every round also
    overrides `at`, and one that remembers something overrides `init` and `update`; the number of
    partitions is the same in all rounds.
    """

    exact: ClassVar[bool] = True
    """Whether Byzantine messages within the bound leave the decoded gradient as it is, up to
    rounding. Attacks that know the server's rule search only against codes that are not exact."""

    compressible: ClassVar[Literal["freely", "alike", "never"]] = "never"
    """Whether messages may lose something on their way to `decode`: any of it, if they are added
    up; what is equal to lose equally, if replicas are compared; nothing, if they solve equations
    that Byzantine messages are found by."""

    num_workers: int = 15
    """Workers (n in the papers)."""

    @property
    @abstractmethod
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition."""

    def at(self, step: int) -> "Code":
        """The code of one round, counted from 0: who computes what, and sends what, in it.

        The code itself, unless it is drawn anew every round.
        """
        return self

    def width(self, dim: int) -> int:
        """Numbers in a message about `dim` parameters: as many, unless the code says otherwise."""
        return dim

    def message_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of messages about gradients of this one: the same, unless the code says so."""
        return dtype

    def forged(self, values: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
        """What a Byzantine worker sends whose attack came up with these numbers.

        Attacks compute with floating-point numbers, whatever a code's messages are.
        """
        return values

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        """What workers are told beside the parameters, from what is remembered; nothing."""
        return {}

    def informed(self, extra: Mapping[str, Tensor]) -> "Code":
        """The code of a round whose workers were told this: itself, unless it told them."""
        return self

    @abstractmethod
    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Num[Tensor, " width"]:
        """The message of one worker.

        Args:
            worker: its id.
            gradients: gradients of the partitions that it owns, in increasing order of partition.
        """

    def encode_all(self, blocks: Iterable[Float[Tensor, "_ dim"]]) -> Num[Tensor, "workers width"]:
        """The messages of all workers, computed in one place, each gradient needed once.

        Args:
            blocks: gradients of the partitions in order, some at a time, so that a code which adds
                them up as they come never holds more than one block beside the messages.
        """
        gradients = torch.cat(list(blocks))
        return torch.stack(
            [self.encode(worker, gradients[owned]) for worker, owned in enumerate(self.assignment)]
        )

    @property
    def encoding(self) -> Float[Tensor, "workers partitions"] | None:
        """Float64; what a worker multiplies a partition's gradient by. None if not so simple."""
        if self.width(1) != 1:
            return None
        return self.encode_all([torch.eye(self.num_partitions, dtype=torch.float64)])

    @abstractmethod
    def decode(
        self,
        messages: Num[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """The mean gradient, and who is suspected.

        Args:
            messages: one row per worker; what stands in rows that did not arrive is ignored.
            arrived: whose messages arrived; all by default.
            generator: the decoder's private randomness; drawn from the operating system if None.

        Raises:
            DecodeError: if more is wrong than the code survives.
        """

    def can_decode(self, arrived: Bool[Tensor, " workers"]) -> bool:
        """Whether the messages of these workers suffice, if none of them is Byzantine.

        An engine need not wait for more; one that fears Byzantine workers does. By default all
        are needed.
        """
        return bool(arrived.all())

    @property
    def min_workers(self) -> int:
        """The number of workers of whom any so many suffice, if none of them is Byzantine."""
        return self.num_workers

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The state before the first round: `dim` parameters of this dtype and device."""
        return ()

    def update(
        self,
        messages: Num[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None,
        state: State,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Decoded, State]:
        """Decodes one round given the state; also the next state. See `decode`.

        A code that is drawn anew counts the rounds in its state: messages are those of `at(step)`
        in the `step`-th call from `init` on.
        """
        return self.decode(messages, arrived, generator=generator), state

    @property
    def num_tolerated(self) -> int:
        """Byzantine workers that are survived: `num_byzantine` of codes that have one, else 0."""
        return int(getattr(self, "num_byzantine", 0))

    @property
    def method(self) -> object:
        """What decodes: the code itself, or the rule of one without redundancy."""
        return self

    @property
    def needs_distances_only(self) -> bool:
        """Whether `attacked` follows from the distances between messages."""
        return False

    def excluding(self, number: int) -> "Code":
        """The code that is left once so many Byzantine workers are excluded; itself by default."""
        return self

    def weighing(self, weights: Sequence[float]) -> "Code":
        """The code of a round in which workers count by weights, such as numbers of samples.

        Raises:
            ValueError: by default, since every partition counts alike.
        """
        raise ValueError(f"weights need a rule instead of a code, got {self}")

    def attacked(
        self, messages: Float[Tensor, "sent width"], state: State, byzantine: Sequence[int]
    ) -> Float[Tensor, " dim"]:
        """What would become of other messages in the same round, for attacks that try theirs.

        The mean if they are too few or too broken: `update` will then say so.

        Args:
            messages: those of the honest workers first, by id.
            state: what is remembered before the round.
            byzantine: whose messages come last.
        """
        honest = [worker for worker in range(self.num_workers) if worker not in byzantine]
        if len(messages) != self.num_workers:
            return messages.mean(dim=0)
        table = torch.empty_like(messages)
        table[[*honest, *byzantine]] = messages
        try:
            return self.update(table, None, state)[0].gradient
        except TooManyByzantineError:
            return messages.mean(dim=0)

    @property
    def num_partitions(self) -> int:
        """How many partitions a round's batch is cut into (k in the papers)."""
        return self.assignment.shape[1]

    @property
    def redundancy(self) -> float:
        """Gradients computed per partition, on average (r in the papers)."""
        return self.assignment.sum().item() / self.num_partitions
