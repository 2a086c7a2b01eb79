"""How a drill is staged: what bad workers send instead of their duty, on every engine the same."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.attacks import Attack
from phalanx.randomness import generator
from phalanx.training.engine import Inbox
from phalanx.training.job import Job


@dataclass(frozen=True)
class Role:
    """What one bad worker does in one round.

    Attributes:
        attack: its attack.
        num_byzantine: how many workers are bad in this round.
        seed: the run's seed.
        step: the round.
        worker: its id.
    """

    attack: Attack
    num_byzantine: int
    seed: int
    step: int
    worker: int

    def forge(
        self, own: Float[Tensor, " width"], honest: Float[Tensor, "honest width"] | None = None
    ) -> Tensor:
        """What the worker sends, the same bits in any process."""
        source = generator(self.seed, "attack", self.step, self.worker)
        return self.attack.forge(own, honest, self.num_byzantine, source)


def roles(job: Job, step: int) -> dict[int, Role]:
    """The bad workers of a round."""
    conduct = job.conduct(step)
    return {
        worker: Role(attack, len(conduct), job.seed, step, worker)
        for worker, attack in conduct.items()
    }


def stage(
    inbox: Inbox, cast: dict[int, Role], members: Iterable[int], deadline_s: float | None
) -> None:
    """Replaces the honest messages of bad workers by what they send.

    Args:
        inbox: the round's messages, honest ones of `members` among them.
        cast: all bad workers of the round.
        members: those of them that are staged here, and not where they run.
        deadline_s: delays beyond it are late; None for no deadline.
    """
    members = [worker for worker in members if inbox.arrived[worker]]
    honest = None
    if any(cast[worker].attack.omniscient for worker in members):
        rows = [
            worker for worker in inbox.arrived.nonzero().flatten().tolist() if worker not in cast
        ]
        honest = inbox.messages[rows]
    for worker in members:
        attack = cast[worker].attack
        if not attack.sends:
            inbox.refuse(worker, "silent")
        elif deadline_s is not None and attack.delay_s > deadline_s:
            inbox.refuse(worker, "late")
        else:
            forged = cast[worker].forge(
                inbox.messages[worker].clone(), honest if attack.omniscient else None
            )
            inbox.put(worker, forged, inbox.losses[worker].item())
