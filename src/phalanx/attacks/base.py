"""Base class of Byzantine attacks."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.adversary_knowledge import AdversaryKnowledge, Rule, column_mean
from phalanx.checks import require_at_least

State = tuple[Tensor, ...]
"""What an attack remembers between rounds; empty for an attack without memory."""


@dataclass(frozen=True)
class Attack(ABC):
    """A Byzantine worker's behaviour in place of its duty, in drills.

    An attack is a pure function of what its worker would have sent (`own`), and, if it is
    `omniscient`, of what the honest workers send. Some also say that their worker is to compute
    something else (`relabels`, `computation`, `rounds_behind`), or plan the round ahead (`plan`).
    Calling an attack gives the messages of all Byzantine workers:

    >>> import torch
    >>> from phalanx.attacks import ReverseGradient
    >>> ReverseGradient(scale=2.0)(torch.tensor([[1.0, 3.0], [3.0, 5.0]]), num_byzantine=1)
    tensor([[-4., -8.]])
    """

    @abstractmethod
    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The message of one Byzantine worker.

        Args:
            own: what this worker would have sent if it were honest; never overwritten.
            honest: what the honest workers send; None unless the attack is `omniscient`.
            num_byzantine: how many workers are Byzantine in this round.
            generator: source of randomness, this worker's own; None draws from torch's global one.
        """

    @property
    def omniscient(self) -> bool:
        """Whether `forge` reads the honest messages, which takes collusion or a tapped network."""
        return False

    @property
    def sends(self) -> bool:
        """Whether a message leaves the worker at all; `forge` need not be called if not."""
        return True

    @property
    def delay_s(self) -> float:
        """Seconds by which the message is held back."""
        return 0.0

    @property
    def rounds_behind(self) -> int:
        """How many rounds old the parameters and samples are that its worker computes with."""
        return 0

    @property
    def relabels(self) -> bool:
        """Whether its worker computes with other targets, those of `relabel`."""
        return False

    @property
    def computation(self) -> Any:
        """The `Computation` that its worker does instead of the round's; None for the round's."""
        return None

    def relabel(self, targets: Tensor, num_classes: int) -> Tensor:
        """The targets that its worker computes with, of the same shape: the true ones, by default.

        Args:
            targets: targets of a batch.
            num_classes: how many classes the model tells apart.
        """
        return targets

    def member(self, rank: int) -> "Attack":
        """The attack of the `rank`-th Byzantine worker of a round: this one, by default."""
        return self

    def problem(self, honest: Collection[int]) -> str | None:
        """Why it cannot be carried out where these workers are honest; None if it can.

        Args:
            honest: ids of the workers that are not Byzantine for good.
        """
        return None

    def plan(self, view: AdversaryKnowledge, memory: State = ()) -> tuple["Attack", State]:
        """The attack that this one comes down to in a round, and what it remembers.

        An engine asks this once per round, however many workers carry the attack out, if it is
        `omniscient`; they then `forge` as planned. By default the attack itself, without memory.

        Args:
            view: what the Byzantine workers know of the round.
            memory: what the last plan remembered; empty before the first.
        """
        return self, ()

    def plans(
        self, view: AdversaryKnowledge, ranks: Iterable[int], memory: Mapping[int, State]
    ) -> tuple[dict[int, "Attack"], dict[int, State]]:
        """The plans of the Byzantine workers of these ranks, and what is remembered.

        Members that are equal make one plan, kept under the lowest rank that they can have.

        Args:
            view: what the Byzantine workers know of the round.
            ranks: which of them send.
            memory: what the plans of earlier rounds remembered.
        """
        chosen: dict[int, Attack] = {}
        made: dict[int, Attack] = {}
        remembered = dict(memory)
        for rank in ranks:
            member = self.member(rank)
            first = next(lower for lower in range(rank + 1) if self.member(lower) == member)
            if first not in made:
                made[first] = member
                if member.omniscient:
                    made[first], state = member.plan(view, remembered.get(first, ()))
                    remembered[first] = state
            chosen[rank] = made[first]
        return chosen, remembered

    def messages(
        self,
        honest: Float[Tensor, "honest dim"],
        num_byzantine: int,
        *,
        own: Float[Tensor, "byzantine dim"] | None = None,
        aggregate: Rule = column_mean,
        generator: torch.Generator | None = None,
    ) -> list[Tensor | None]:
        """Messages of the Byzantine workers, in order of rank; None where nothing is sent.

        Args:
            honest: messages of the honest workers.
            num_byzantine: how many workers are Byzantine.
            own: their messages if they were honest; the mean of the honest ones if not given.
            aggregate: the rule under attack, for attacks that try theirs on it; any rule of
                `phalanx.aggregation` is one. The plain mean if not given.
            generator: source of randomness.

        Raises:
            ValueError: if `num_byzantine` is negative, `own` has another number of rows, `own` is
                missing where no worker is honest, or the attack has a `problem` with the honest
                workers, whose ids are the numbers of their rows.
        """
        require_at_least(0, num_byzantine=num_byzantine)
        if num_byzantine == 0:
            return []
        if (unfit := self.problem(range(len(honest)))) is not None:
            raise ValueError(unfit)
        if own is None:
            if len(honest) == 0:
                raise ValueError("own must be given when honest has no rows, got None")
            own = honest.mean(dim=0).expand(num_byzantine, -1)
        if len(own) != num_byzantine:
            raise ValueError(
                f"own must have one row per Byzantine worker, got {len(own)} for {num_byzantine}"
            )
        view = AdversaryKnowledge(
            honest, tuple(range(len(honest))), num_byzantine, aggregate, generator
        )
        planned, _ = self.plans(view, range(num_byzantine), {})
        return [
            plan.forge(row, honest if plan.omniscient else None, num_byzantine, generator)
            if plan.sends
            else None
            for plan, row in zip(planned.values(), own, strict=True)
        ]

    def __call__(
        self,
        honest: Float[Tensor, "honest dim"],
        num_byzantine: int,
        *,
        own: Float[Tensor, "byzantine dim"] | None = None,
        aggregate: Rule = column_mean,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "sent width"]:
        """Messages of the Byzantine workers, stacked, in order of rank.

        A worker that sends nothing has no row; `messages` keeps its place. The width is that of
        the honest messages, unless the attack is to send another.

        Args:
            honest: messages of the honest workers.
            num_byzantine: how many workers are Byzantine.
            own: their messages if they were honest; the mean of the honest ones if not given.
            aggregate: the rule under attack, for attacks that try theirs on it; any rule of
                `phalanx.aggregation` is one. The plain mean if not given.
            generator: source of randomness.

        Raises:
            ValueError: as `messages` does, and if the messages differ in length, so that they are
                no matrix.
        """
        sent = [
            message
            for message in self.messages(
                honest, num_byzantine, own=own, aggregate=aggregate, generator=generator
            )
            if message is not None
        ]
        lengths = sorted({len(message) for message in sent})
        if len(lengths) > 1:
            raise ValueError(
                f"messages must be equally long to be stacked, got lengths {lengths}; "
                "`messages` gives them one by one"
            )
        return torch.stack(sent) if sent else honest.new_empty(0, honest.shape[1])


def require_honest(
    honest: Float[Tensor, "honest dim"] | None, attack: Attack
) -> Float[Tensor, "honest dim"]:
    """The honest messages, of which an omniscient attack needs one at least.

    Raises:
        ValueError: if there is none.
    """
    if honest is None or len(honest) == 0:
        name = type(attack).__name__
        raise ValueError(f"honest must have at least 1 row for {name}, got none")
    return honest
