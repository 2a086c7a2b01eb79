"""Chains of message transforms: applied by workers, decoded by the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Num
from torch import Tensor

from phalanx.coding import Code
from phalanx.errors import NotFiniteError, WireError
from phalanx.parameters import ParameterLayout
from phalanx.transforms.base import MessageContext, MessageTransform, State, checked


class Transformed(NamedTuple):
    """Transformed message of a worker, and its new state.

    Attributes:
        message: `(width,)`, after all transforms but one that encodes.
        sent: what is sent: that, or its bytes; None where NaN or infinity cannot be.
        states: what is remembered, by stage.
    """

    message: Num[Tensor, " width"]
    sent: Tensor | None
    states: dict[str, State]


@dataclass(frozen=True)
class Chain:
    """Chain of message transforms, applied one after the other."""

    transforms: tuple[MessageTransform, ...]
    """The members, in order."""
    layout: ParameterLayout
    """The tensors of a message."""
    seed: int
    """Of the run."""
    num_workers: int
    """Workers of the run."""

    def update(
        self, message: Num[Tensor, " width"], states: Mapping[str, State], step: int, worker: int
    ) -> Transformed:
        """What a worker sends, and what its transforms remember.

        Args:
            message: before the first transform.
            states: what the worker remembers, by stage; other stages are handed on.
            step: the round.
            worker: its id.
        """
        context, following = self._context(step, worker), dict(states)
        sent: Tensor | None = message
        for place, transform in enumerate(self.transforms):
            name = f"transforms.{place}"
            state = states.get(name) or transform.init(self.layout)
            try:
                sent, state = transform.update(message, state, context)
            except NotFiniteError:
                return Transformed(message, None, following)
            if state:
                following[name] = state
            if not transform.encodes:
                message = sent
        return Transformed(message, sent, following)

    def forge(self, message: Tensor, step: int, worker: int) -> Tensor:
        """What a Byzantine worker sends to have this message arrive."""
        if not self.encodes:
            return message
        return self.transforms[-1].forge(message, self._context(step, worker))

    def decode(self, sent: Tensor) -> Num[Tensor, " width"]:
        """The message that was sent.

        Raises:
            WireError: if it is none: "wrong type", "wrong shape" or "malformed".
        """
        if not self.encodes:
            return checked(sent, self.layout)
        try:
            return self.transforms[-1].decode(sent, self.layout)
        except WireError as error:
            raise WireError("malformed") from error

    @property
    def encodes(self) -> bool:
        """Whether messages are sent as bytes."""
        return bool(self.transforms) and self.transforms[-1].encodes

    def problems(self, code: Code) -> list[str]:
        """Why the chain does not go with a code, if so."""
        if self.transforms and not self.layout.dtype.is_floating_point:
            return [
                "transforms need messages of floating-point numbers, got "
                f"{self.transforms[0]} with {code}, whose messages are {self.layout.dtype}"
            ]
        found = [one.conflict(code, self.layout) for one in self.transforms]
        early = [one for one in self.transforms[:-1] if one.encodes]
        if early:
            found.append(f"transforms must encode last, got {early[0]} before the end")
        return [one for one in found if one is not None]

    def _context(self, step: int, worker: int) -> MessageContext:
        return MessageContext(self.layout, self.seed, step, worker, self.num_workers)
