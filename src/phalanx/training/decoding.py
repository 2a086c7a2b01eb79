"""Decoding, whether by a gradient code or by a robust rule over one partition a worker."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation import Aggregator
from phalanx.coding import Code, Decoded
from phalanx.errors import DecodeError, TooManyByzantineError

State = tuple[Tensor, ...]


class Decoder(ABC):
    """The server's side of a round."""

    @property
    @abstractmethod
    def code(self) -> Code:
        """Who computes what, and what they send."""

    @property
    @abstractmethod
    def num_tolerated(self) -> int:
        """How many liars are survived."""

    @abstractmethod
    def init(self, dim: int) -> State:
        """What is remembered before the first round; empty for a decoder without memory."""

    @abstractmethod
    def decode(self, messages: Tensor, arrived: Tensor, state: State) -> tuple[Decoded, State]:
        """The gradient of a round, who lied, and the next state."""

    @abstractmethod
    def aggregate(self, messages: Tensor, state: State, byzantine: Sequence[int]) -> Tensor:
        """What would become of other messages in the same round, for attacks that try theirs.

        The mean if they are too few or too broken: `decode` will then say so.

        Args:
            messages: `(workers, width)`, those of the honest workers first, by id.
            state: what is remembered before the round.
            byzantine: whose messages come last.
        """

    @property
    def needs_distances_only(self) -> bool:
        """Whether `aggregate` follows from how far the messages lie apart; no by default."""
        return False

    def excluding(self, number: int) -> "Decoder":
        """The decoder that is left once so many liars are excluded; itself by default."""
        return self


@dataclass(frozen=True)
class KnownRule:
    """The server's rule as it stands in a round, for attacks of a drill that know it."""

    decoder: Decoder
    state: State
    byzantine: Sequence[int]

    @property
    def needs_distances_only(self) -> bool:
        """Whether its weights follow from how far the messages lie apart."""
        return self.decoder.needs_distances_only

    def __call__(self, messages: Tensor) -> Tensor:
        """See `Decoder.aggregate`."""
        return self.decoder.aggregate(messages, self.state, self.byzantine)


@dataclass(frozen=True)
class CodeDecoder(Decoder):
    """Decodes by the code itself."""

    decodes: Code

    @property
    def code(self) -> Code:
        """The code itself."""
        return self.decodes

    @property
    def num_tolerated(self) -> int:
        """What the code says; none if it says nothing."""
        return getattr(self.decodes, "num_byzantine", 0)

    def init(self, dim: int) -> State:
        """What the code remembers."""
        return self.code.init(dim)

    def decode(self, messages: Tensor, arrived: Tensor, state: State) -> tuple[Decoded, State]:
        """See `Code.update`."""
        return self.code.update(messages, arrived, state)

    def aggregate(self, messages: Tensor, state: State, byzantine: Sequence[int]) -> Tensor:
        """See `Decoder.aggregate`; a table with rows missing has none in its place."""
        honest = [worker for worker in range(self.code.num_workers) if worker not in byzantine]
        if len(messages) != self.code.num_workers:
            return messages.mean(dim=0)
        table = torch.empty_like(messages)
        table[[*honest, *byzantine]] = messages
        try:
            return self.code.update(table, None, state)[0].gradient
        except TooManyByzantineError:
            return messages.mean(dim=0)


@dataclass(frozen=True)
class Uncoded(Code):
    """No redundancy: worker i sends the gradient of partition i; the mean, if all arrive."""

    exact: ClassVar[bool] = False
    compressible: ClassVar[Literal["freely", "alike", "never"]] = "freely"

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """The identity."""
        return torch.eye(self.num_workers, dtype=torch.bool)

    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Float[Tensor, " width"]:
        """The gradient itself."""
        return gradients[0]

    def encode_all(
        self, blocks: Iterable[Float[Tensor, "block dim"]]
    ) -> Float[Tensor, "workers width"]:
        """The gradients themselves, not copied if they come in one block."""
        first, *others = blocks
        return torch.cat([first, *others]) if others else first

    def decode(
        self,
        messages: Float[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """The mean of all messages, trusted blindly."""
        nobody = torch.zeros(self.num_workers, dtype=torch.bool)
        if arrived is not None and not arrived.all():
            missing = (~arrived).nonzero().flatten().tolist()
            raise DecodeError(
                f"without redundancy nobody may be missing; missing: {missing}",
                workers=missing,
                bound=0,
            )
        return Decoded(messages.mean(dim=0), nobody, 0.0)


@dataclass(frozen=True)
class RuleDecoder(Decoder):
    """Decodes by a robust rule: every worker computes one partition and sends its gradient."""

    rule: Aggregator
    num_workers: int

    @property
    def code(self) -> Code:
        """One partition a worker."""
        return Uncoded(self.num_workers)

    @property
    def num_tolerated(self) -> int:
        """What the rule says."""
        return self.rule.num_tolerated(self.num_workers)

    def init(self, dim: int) -> State:
        """What the rule remembers."""
        return self.rule.init(dim)

    def decode(self, messages: Tensor, arrived: Tensor, state: State) -> tuple[Decoded, State]:
        """The aggregate of what arrived.

        The messages that did not arrive are not held against `num_byzantine`: all liars may be
        among those that did.

        Raises:
            DecodeError: if too few arrived for the rule.
            TooManyByzantineError: if more messages are not finite than the rule survives.
        """
        workers = arrived.nonzero().flatten()
        missing = (~arrived).nonzero().flatten().tolist()
        if len(workers) == 0:
            raise DecodeError("no message arrived", workers=missing, bound=0)
        try:
            bound = self.rule.num_tolerated(len(workers))
        except ValueError as error:
            raise DecodeError(
                f"too few messages arrived for {self.rule}: {error}; missing: {missing}",
                workers=missing,
                bound=0,
            ) from error
        rows = messages if not missing else messages[workers]
        try:
            aggregate, state = self.rule.update(rows, state)
        except TooManyByzantineError as error:
            ids = workers[error.workers].tolist()
            raise TooManyByzantineError(
                f"the messages of workers {ids} are not finite, and {self.rule} survives {bound}",
                workers=ids,
                bound=bound,
            ) from error
        suspects = torch.zeros(self.num_workers, dtype=torch.bool)
        suspects[workers[aggregate.suspects]] = True
        return Decoded(aggregate.value, suspects, 0.0), state

    def excluding(self, number: int) -> "RuleDecoder":
        """With a rule that has so many liars fewer to survive, if it says how many."""
        bound = getattr(self.rule, "num_byzantine", None)
        if number == 0 or bound is None:
            return self
        return replace(self, rule=self.rule.with_num_byzantine(max(bound - number, 0)))

    @property
    def needs_distances_only(self) -> bool:
        """What the rule says."""
        return self.rule.needs_distances_only

    def aggregate(self, messages: Tensor, state: State, byzantine: Sequence[int]) -> Tensor:
        """See `Decoder.aggregate`; to a rule all workers are alike."""
        try:
            return self.rule.update(messages, state)[0].value
        except (ValueError, TooManyByzantineError):
            return messages.mean(dim=0)


def decoder(code: Code | None, rule: Aggregator | None, num_workers: int) -> Decoder:
    """The decoder of a run: its code, or else its rule.

    Raises:
        ValueError: if both are given or neither is.
    """
    if code is not None and rule is not None:
        raise ValueError("give a code or a rule, not both: a code decodes by itself")
    if code is not None:
        return CodeDecoder(code)
    if rule is None:
        raise ValueError("give a code or a rule, got neither")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    rule.num_tolerated(num_workers)
    return RuleDecoder(rule, num_workers)
