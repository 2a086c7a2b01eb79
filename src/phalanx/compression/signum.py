"""Signum: majority vote on the signs of momenta."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.communication.collectives import State
from phalanx.compression.message import Message
from phalanx.compression.momentum import require_momentum
from phalanx.compression.sign_sgd import SignSGD
from phalanx.floats import require_finite, working


@dataclass(frozen=True)
class Signum(SignSGD):
    """Sends the sign of every value's momentum; the mean is replaced by the majority's sign.

    Every worker averages its own gradients over time before it takes signs, so that the noise of
    one batch decides less. Train with an optimizer without momentum, and with learning rates of
    about a thousandth of those of SGD. Survives fewer than half of the workers that lie, as
    `SignSGD` does.
    Wire: as `SignSGD`. Memory: one tensor's size.
    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for
    Non-Convex Problems", ICML 2018, algorithm 2; with the vote of Bernstein, Zhao, Azizzadenesheli,
    Anandkumar, ICLR 2019.

    >>> import torch
    >>> compressor, state = Signum(momentum=0.5), Signum().init(torch.zeros(2))
    >>> _, state = compressor.update(torch.tensor([4.0, -1.0]), state)
    >>> message, state = compressor.update(torch.tensor([-1.0, -1.0]), state)
    >>> compressor.decode(message), state
    (tensor([ 1., -1.]), (tensor([ 0.5000, -0.7500]),))
    """

    momentum: float = 0.9
    """Share of the momentum that is kept in a round (beta); the gradient makes up the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_momentum(self.momentum)

    def init(self, like: Float[Tensor, "..."]) -> State:
        """No momentum, in the dtype of arithmetic."""
        return (torch.zeros_like(like, dtype=working(like.dtype)),)

    def update(
        self, x: Float[Tensor, "..."], state: State, generator: torch.Generator | None = None
    ) -> tuple[Message, State]:
        """Encodes the momentum, this tensor included, which is the next state."""
        require_finite([x])
        x = x.detach()
        mean = torch.lerp(x.to(state[0].dtype), state[0], self.momentum)
        # Signs are taken of the wide numbers: those of small ones would get lost in halves.
        message = self.encode(mean)
        shape = tuple(x.shape)
        layout = self.layout(shape, x.dtype) if x.numel() else ()
        return Message(shape, x.dtype, layout, message.parts), (mean,)
