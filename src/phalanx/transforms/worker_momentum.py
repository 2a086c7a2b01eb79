"""Worker momentum: every worker sends the momentum of its messages."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.coding import Code
from phalanx.parameters import ParameterLayout
from phalanx.transforms.base import MessageContext, MessageTransform, State


@dataclass(frozen=True)
class WorkerMomentum(MessageTransform):
    """Momentum of each worker's messages, sent instead of the last message.

    Honest momenta vary less from worker to worker than honest gradients do, so that a lie that is
    small enough to hide among them moves the model less, round after round. It helps every robust
    rule, and is half of the defence of centred clipping; the other half is the rule's own memory.

    A worker's first momentum is its first message. A number of it that is not finite starts anew in
    the next round, so that one broken gradient does not spoil a worker for good. A worker that
    misses a round, or computes something else in it (flipped labels, say), has another momentum
    than one that did not: under a code, its replicas disagree with it until that has faded.

    With momentum in the workers, the optimizer needs none.

    Cost: one vector per worker, and a few passes over its message.
    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization",
    ICML 2021 (Algorithm 2).

    >>> import torch
    >>> from phalanx.transforms import WorkerMomentum
    >>> momentum = WorkerMomentum(beta=0.5)
    >>> _, first = momentum.update(torch.tensor([4.0]), (), None)
    >>> momentum.update(torch.tensor([0.0]), first, None)[0]
    tensor([2.])
    """

    beta: float = 0.9
    """What a momentum keeps of itself from round to round, at least 0 and below 1."""

    form: Literal["average", "sum"] = "average"
    """Whether a new message counts 1 - beta, so that a momentum is as long as a message, or in
    full, so that it is up to 1 / (1 - beta) times as long; then scale learning rate and radii."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, got {self.beta}")
        if self.form not in ("average", "sum"):
            raise ValueError(f"form must be 'average' or 'sum', got {self.form!r}")

    def update(
        self, message: Float[Tensor, " width"], state: State, context: MessageContext | None
    ) -> tuple[Float[Tensor, " width"], State]:
        """The next momentum, sent and remembered; see `MessageTransform.update`."""
        if not state:
            return message, (message,)
        (momentum,) = state
        gain = 1 - self.beta if self.form == "average" else 1.0
        following = momentum.mul(self.beta).add_(message.mul(gain))
        following = torch.where(momentum.isfinite(), following, message)
        return following, (following,)

    def conflict(self, code: Code, layout: ParameterLayout) -> str | None:
        """Replicas agree if they compute the same partitions in every round."""
        if code.at(1) is code:
            return None
        return (
            "WorkerMomentum needs workers that compute the same partitions in every round, for "
            f"replicas to agree, got {code}, which is drawn anew"
        )
