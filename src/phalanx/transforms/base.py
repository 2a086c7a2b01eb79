"""Message transform interface: a pure map of a worker's message, with explicit state."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from phalanx.coding import Code
from phalanx.errors import WireError
from phalanx.parameters import ParameterLayout
from phalanx.randomness import generator

State = tuple[Tensor, ...]
"""What a worker's transform remembers between rounds; empty before the first."""


class MessageContext(NamedTuple):
    """Context of a transformed message: worker, round and layout.

    Attributes:
        layout: the tensors of a message, one after the other: those of the model, unless the code
            sends something of another width.
        seed: of the run.
        step: the round.
        worker: id of the sender.
        num_workers: workers of the run.
    """

    layout: ParameterLayout
    seed: int
    step: int
    worker: int
    num_workers: int

    def generator(self, name: str) -> torch.Generator:
        """Randomness of this worker and round."""
        return generator(self.seed, name, self.step, self.worker)


@dataclass(frozen=True)
class MessageTransform(ABC):
    """Message transform: one member of a chain, pure, with explicit state.

    Members are applied in order; what one hands on, the next is given. The last may turn the
    message into bytes, which its `decode` reads on the server.
    """

    encodes: ClassVar[bool] = False
    """Whether `update` gives bytes; then it must be the last of its chain."""

    def init(self, layout: ParameterLayout) -> State:
        """What is remembered of messages like these before the first round."""
        return ()

    @abstractmethod
    def update(
        self, message: Float[Tensor, " width"], state: State, context: MessageContext
    ) -> tuple[Tensor, State]:
        """The message that is handed on, and what is remembered; nothing is overwritten.

        Args:
            message: of one worker.
            state: what it remembers, from `init` or the round before.
            context: whose message of which round.

        Raises:
            NotFiniteError: if NaN or infinity cannot be handed on.
        """

    def decode(self, data: Tensor, layout: ParameterLayout) -> Float[Tensor, " width"]:
        """The message that was sent, on the server; `data` is of no trusted origin.

        Raises:
            WireError: if it is no message; its text is the reason in two words.
        """
        return checked(data, layout)

    def forge(self, message: Tensor, context: MessageContext) -> Tensor:
        """What a Byzantine worker sends to have this arrive; it remembers nothing."""
        return message

    def conflict(self, code: Code, layout: ParameterLayout) -> str | None:
        """Why honest messages under this code would not be what the code takes for honest.

        None if they would; by default for codes that add messages up, whatever happens to each.
        """
        if code.compressible == "freely":
            return None
        return (
            f"transforms must leave replicas equal under {type(code).__name__}, got {self}, which "
            "changes messages each in its own way"
        )


def checked(data: Tensor, layout: ParameterLayout) -> Num[Tensor, " width"]:
    """A message that came as it is.

    Raises:
        WireError: if its type or shape is none of a message.
    """
    if data.dtype != layout.dtype:
        raise WireError("wrong type")
    if data.shape != (layout.dim,):
        raise WireError("wrong shape")
    return data
