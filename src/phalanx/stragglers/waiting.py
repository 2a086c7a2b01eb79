"""Waiting policies: when a round ends, on recorded delays and in an engine's event loop.

A policy maps the times at which messages arrived to the time at which the round ends. It never
looks ahead: the messages that arrived up to the end of a round determine it. So the same call
serves both uses. On recorded delays it is called once, with all of them. An event loop calls it
whenever a message comes in, with infinity for the workers that it has not heard from:

    while pending:
        end = policy.ends_at(arrivals, memory)  # infinity: wait for another message
        if end <= now():
            break
        ...  # wait for a message, until `end` at most
    memory = policy.update(arrivals, end, memory)
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_at_least, require_finite_above, require_share


@dataclass(frozen=True)
class WaitingPolicy(ABC):
    """How long the server waits for messages in a round.

    A policy holds hyper-parameters only. What it remembers from round to round is a tuple of
    floats, passed in and returned; it is empty for policies that remember nothing.
    """

    @abstractmethod
    def ends_at(
        self, arrivals: Float[Tensor, "*rounds workers"], memory: tuple[float, ...] = ()
    ) -> Float[Tensor, "*rounds"]:
        """When a round ends: seconds since its start; infinity if another message is needed.

        Args:
            arrivals: when each worker's message arrived, in seconds since the start of the round;
                infinity for those that have not arrived, or never do.
            memory: from `init` or `update`.

        Raises:
            ValueError: if the policy needs more workers than there are.
        """

    def init(self) -> tuple[float, ...]:
        """What is remembered before the first round."""
        return ()

    def update(
        self, arrivals: Float[Tensor, " workers"], end: float, memory: tuple[float, ...] = ()
    ) -> tuple[float, ...]:
        """What is remembered after a round.

        Args:
            arrivals: of the round; what came after its end is not looked at.
            end: when it ended.
            memory: what was remembered before.
        """
        return memory

    def for_code(self, can_decode: Callable[[Tensor], bool]) -> "WaitingPolicy":
        """The policy of a round whose code answers so, if it has not been told whom to ask.

        Args:
            can_decode: the method `can_decode` of the round's code.
        """
        return self


@dataclass(frozen=True)
class WaitForAll(WaitingPolicy):
    """Waits for every worker: exact, and as slow as the slowest.

    >>> import torch
    >>> WaitForAll().ends_at(torch.tensor([3.0, 1.0, 2.0]))
    tensor(3.)
    """

    def ends_at(
        self, arrivals: Float[Tensor, "*rounds workers"], memory: tuple[float, ...] = ()
    ) -> Float[Tensor, "*rounds"]:
        """The time of the last message."""
        return arrivals.amax(dim=-1)


@dataclass(frozen=True)
class WaitFor(WaitingPolicy):
    """Waits for so many messages, whosever they are.

    >>> import torch
    >>> WaitFor(num_messages=2).ends_at(torch.tensor([3.0, 1.0, 2.0]))
    tensor(2.)
    """

    num_messages: int = 12
    """How many messages are enough (k, or r, in the papers)."""

    def __post_init__(self) -> None:
        require_at_least(1, num_messages=self.num_messages)

    def ends_at(
        self, arrivals: Float[Tensor, "*rounds workers"], memory: tuple[float, ...] = ()
    ) -> Float[Tensor, "*rounds"]:
        """The time of the `num_messages`-th message."""
        return _ranked(arrivals, self.num_messages, "num_messages")


@dataclass(frozen=True)
class Deadline(WaitingPolicy):
    """Waits for every worker, but no longer than a deadline; past it, until enough have arrived.

    >>> import torch
    >>> Deadline(deadline_s=2.5).ends_at(torch.tensor([3.0, 1.0, 2.0]))
    tensor(2.5000)
    """

    deadline_s: float = 60.0
    """Seconds from the start of the round."""

    min_messages: int = 1
    """Messages without which no round ends."""

    def __post_init__(self) -> None:
        require_finite_above(0, deadline_s=self.deadline_s)
        require_at_least(0, min_messages=self.min_messages)

    def ends_at(
        self, arrivals: Float[Tensor, "*rounds workers"], memory: tuple[float, ...] = ()
    ) -> Float[Tensor, "*rounds"]:
        """The deadline; earlier if all have arrived, later if too few have."""
        end = arrivals.amax(dim=-1).clamp(max=self.deadline_s)
        if self.min_messages == 0:
            return end
        return end.maximum(_ranked(arrivals, self.min_messages, "min_messages"))


@dataclass(frozen=True)
class AdaptiveDeadline(WaitingPolicy):
    """A deadline that follows the delays: `slack` times a quantile of those observed so far.

    Delays beyond the end of a round are not observed, and count as its length. So a deadline that
    is missed by more than `1 - quantile` of the workers grows by `slack` until it no longer is.

    >>> policy = AdaptiveDeadline(first_s=60.0, quantile=0.5, slack=2.0, weight=1.0)
    >>> import torch
    >>> policy.update(torch.tensor([1.0, 2.0, 70.0]), end=60.0, memory=policy.init())
    (4.0,)
    """

    first_s: float = 60.0
    """The deadline of the first round, in seconds."""

    quantile: float = 0.9
    """Share of the workers that are to arrive in time."""

    slack: float = 1.5
    """How many times as long as that share's delay the server waits."""

    weight: float = 0.3
    """Weight of the newest round in the running mean; 1 forgets all others."""

    min_messages: int = 1
    """Messages without which no round ends."""

    def __post_init__(self) -> None:
        require_finite_above(0, first_s=self.first_s)
        require_share(quantile=self.quantile, weight=self.weight)
        require_finite_above(1, slack=self.slack)
        require_at_least(0, min_messages=self.min_messages)

    def init(self) -> tuple[float, ...]:
        """The deadline of the first round."""
        return (self.first_s,)

    def ends_at(
        self, arrivals: Float[Tensor, "*rounds workers"], memory: tuple[float, ...] = ()
    ) -> Float[Tensor, "*rounds"]:
        """As `Deadline`, with the deadline that is remembered."""
        (deadline_s,) = memory or self.init()
        return Deadline(deadline_s, self.min_messages).ends_at(arrivals)

    def update(
        self, arrivals: Float[Tensor, " workers"], end: float, memory: tuple[float, ...] = ()
    ) -> tuple[float, ...]:
        """The deadline of the next round."""
        (deadline_s,) = memory or self.init()
        rank = math.ceil(self.quantile * len(arrivals))
        observed = _ranked(arrivals.clamp(max=end), rank, "quantile").item()
        return (deadline_s + self.weight * (self.slack * observed - deadline_s),)


@dataclass(frozen=True)
class UntilDecodable(WaitingPolicy):
    """Waits until a code can decode what has arrived, and no longer.

    Cost: log2(workers) questions to the code for each round.

    >>> import torch
    >>> policy = UntilDecodable(lambda arrived: bool(arrived[0] or arrived[1:].all()))
    >>> policy.ends_at(torch.tensor([[5.0, 1.0, 2.0], [1.5, 9.0, 9.0]]))
    tensor([2.0000, 1.5000])
    """

    can_decode: Callable[[Tensor], bool] | None = None
    """Whether the messages of the workers that arrived, `(workers,)` bool, are enough; more must
    never be less. The method `can_decode` of a code. By default an engine asks the code of the
    round, and elsewhere nothing says that fewer than all are enough."""

    def for_code(self, can_decode: Callable[[Tensor], bool]) -> WaitingPolicy:
        """Asks this code, unless another was given."""
        return self if self.can_decode is not None else UntilDecodable(can_decode)

    def ends_at(
        self, arrivals: Float[Tensor, "*rounds workers"], memory: tuple[float, ...] = ()
    ) -> Float[Tensor, "*rounds"]:
        """The time of the first message with which the code can decode."""
        if self.can_decode is None:
            return WaitForAll().ends_at(arrivals)
        times, order = arrivals.sort(dim=-1, stable=True)
        # The first entry stands for no message at all.
        times = torch.cat([torch.zeros_like(times[..., :1]), times], dim=-1)
        enough = torch.tensor([self._enough(row) for row in order.reshape(-1, order.shape[-1])])
        if enough.numel() and enough.max() > arrivals.shape[-1]:
            raise ValueError("can_decode must accept the messages of all workers, got a refusal")
        return times.gather(-1, enough.reshape(*order.shape[:-1], 1)).squeeze(-1)

    def _enough(self, order: Tensor) -> int:
        """How many messages, in this order, it takes."""
        return bisect_left(
            range(len(order) + 1), True, key=lambda number: self._ask(order[:number], len(order))
        )

    def _ask(self, senders: Tensor, num_workers: int) -> bool:
        assert self.can_decode is not None
        arrived = torch.zeros(num_workers, dtype=torch.bool)
        arrived[senders] = True
        return bool(self.can_decode(arrived))


@dataclass(frozen=True)
class FirstOf(WaitingPolicy):
    """Several policies at once: the round is over when one of them says so.

    ErasureHead's server waits for a number of workers, or until it can decode, if that is earlier:
    `FirstOf([WaitFor(12), UntilDecodable(code.can_decode)])`.

    Source: Wang, Charles and Papailiopoulos, "ErasureHead: Distributed Gradient Descent without
    Delays Using Approximate Gradient Coding", 2019 (arXiv 1901.09671).

    >>> import torch
    >>> FirstOf([WaitFor(3), Deadline(2.5)]).ends_at(torch.tensor([3.0, 1.0, 2.0]))
    tensor(2.5000)
    """

    policies: list[WaitingPolicy] | None = None
    """The policies; all workers or the default deadline, if not given."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("policies must hold at least 1 policy, got none")

    @property
    def parts(self) -> tuple[WaitingPolicy, ...]:
        """The policies that may end a round."""
        if self.policies is None:
            return WaitForAll(), Deadline()
        return tuple(self.policies)

    def for_code(self, can_decode: Callable[[Tensor], bool]) -> WaitingPolicy:
        """The same for each policy."""
        return FirstOf([part.for_code(can_decode) for part in self.parts])

    def init(self) -> tuple[float, ...]:
        """What the policies remember, one after the other."""
        return sum((part.init() for part in self.parts), ())

    def ends_at(
        self, arrivals: Float[Tensor, "*rounds workers"], memory: tuple[float, ...] = ()
    ) -> Float[Tensor, "*rounds"]:
        """The earliest of the policies' times."""
        shares = zip(self.parts, self._shares(memory), strict=True)
        return torch.stack([part.ends_at(arrivals, share) for part, share in shares]).amin(dim=0)

    def update(
        self, arrivals: Float[Tensor, " workers"], end: float, memory: tuple[float, ...] = ()
    ) -> tuple[float, ...]:
        """Every policy sees the round as it ended."""
        shares = zip(self.parts, self._shares(memory), strict=True)
        return sum((part.update(arrivals, end, share) for part, share in shares), ())

    def _shares(self, memory: tuple[float, ...]) -> list[tuple[float, ...]]:
        """The memory of each policy."""
        memory, shares = memory or self.init(), []
        for part in self.parts:
            length = len(part.init())
            shares.append(memory[:length])
            memory = memory[length:]
        return shares


def _ranked(arrivals: Tensor, rank: int, name: str) -> Tensor:
    """The time of the `rank`-th message of each round."""
    if rank > arrivals.shape[-1]:
        raise ValueError(f"{name} must be at most the {arrivals.shape[-1]} workers, got {rank}")
    return arrivals.kthvalue(rank, dim=-1).values
