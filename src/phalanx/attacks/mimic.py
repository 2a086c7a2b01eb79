"""Mimic attack: copies of one honest worker's message."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.base import Attack, State, require_honest
from phalanx.attacks.planned_attack import PlannedAttack
from phalanx.checks import require_at_least
from phalanx.floats import power_of_two, working


@dataclass(frozen=True)
class Mimic(PlannedAttack):
    """A copy of one honest worker's message, from all Byzantine workers and in all rounds.

    Nothing about the copies is suspect, but where data differ from worker to worker, one worker's
    share of it counts several times, and rules that trust agreement lose the rest. The target is
    `worker`, if given, or the honest worker that is farthest along the direction `z` in which
    honest messages vary most.
    `z` begins at random and is turned by one power step on the covariance of the honest messages in
    each of the first `warmup` rounds, averaged over them as their mean is; then the target is kept.
    In a round in which the target does not send, or is Byzantine itself, the farthest along `z`
    takes its place. Rounds are those in which the attack is carried out.

    Remembers: `z`, the mean, the number of rounds and the target.
    Cost: three passes over the honest messages in warm-up, and a copy of them; a copy of one
    message afterwards.
    Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", ICLR 2022, section 3 and appendix (mimic).

    >>> import torch
    >>> honest = torch.tensor([[1.0, 0.1], [2.0, 0.0], [3.0, -0.1], [9.0, 0.0]])
    >>> copied = Mimic()(honest, num_byzantine=2)
    >>> copied[0] in honest and torch.equal(copied[0], copied[1])
    True
    """

    warmup: int = 1
    """Rounds in which the target is chosen, from 1 on."""

    worker: int | None = None
    """Id of the target, an honest worker; chosen by `z` if not given."""

    def __post_init__(self) -> None:
        require_at_least(1, warmup=self.warmup)
        require_at_least(0, worker=self.worker)

    def problem(self, honest: Collection[int]) -> str | None:
        """That the target is no honest worker."""
        if self.worker is None or self.worker in honest:
            return None
        return f"worker of Mimic must be an honest worker's id, got {self.worker} of {[*honest]}"

    def plan(self, view: AdversaryKnowledge, memory: State = ()) -> tuple[Attack, State]:
        """A copy of the target's message.

        Raises:
            ValueError: if there is no honest message.
        """
        rows = require_honest(view.honest, self)
        rows = rows.to(working(rows.dtype))
        memory = memory or _beginning(rows, view.generator)
        direction, mean, rounds, target = (value.to(rows.device) for value in memory)
        if rounds < self.warmup:
            direction, mean = _turned(rows, direction, mean, int(rounds))
            chosen = (
                view.workers[_farthest(rows, direction)] if self.worker is None else self.worker
            )
            target = torch.tensor(chosen)
            rounds = rounds + 1
        if int(target) in view.workers:
            row = view.workers.index(int(target))
        else:
            row = _farthest(rows, direction)
        return _CopyOf(row), (direction, mean, rounds, target)


@dataclass(frozen=True)
class _CopyOf(Attack):
    """A copy of the message of the honest worker of a row."""

    row: int

    @property
    def omniscient(self) -> bool:
        """True: it copies an honest message."""
        return True

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The copy."""
        return require_honest(honest, self)[self.row].clone()


def _beginning(rows: Float[Tensor, "honest dim"], generator: torch.Generator | None) -> State:
    device = rows.device if generator is None else generator.device
    direction = torch.randn(rows.shape[1], generator=generator, dtype=rows.dtype, device=device)
    nobody = torch.tensor(-1)
    return direction, torch.zeros_like(rows[0]), torch.tensor(0), nobody


def _turned(
    rows: Float[Tensor, "honest dim"],
    direction: Float[Tensor, " dim"],
    mean: Float[Tensor, " dim"],
    rounds: int,
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Direction and mean after one more round."""
    old, new = rounds / (1 + rounds), 1 / (1 + rounds)
    mean = old * mean + new * rows.mean(dim=0)
    offsets = rows - mean
    offsets = offsets / power_of_two(offsets)  # a direction has no length, and squares do not fit
    turned = (offsets @ direction) @ offsets
    length = turned.norm()
    if length == 0:  # all are equal: any direction is as good
        return direction, mean
    return old * direction + new * turned / length, mean


def _farthest(rows: Float[Tensor, "honest dim"], direction: Float[Tensor, " dim"]) -> int:
    return int((rows @ direction).argmax())
