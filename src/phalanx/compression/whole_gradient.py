"""All tensors as one: one budget for the gradient, whatever its layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.communication.collectives import Exchange, ExchangeContext, State
from phalanx.compression.wrapper import Wrapper
from phalanx.floats import within


@dataclass(frozen=True)
class WholeGradient(Wrapper):
    """Compresses all tensors of a round as one vector instead of each by itself.

    Layers with large gradients then get more of what is sent, and small ones may get nothing. A
    single tensor is compressed as by the inner one. Put `ErrorFeedback` around it, not inside: the
    memory belongs to the tensors.
    Wire: that of the inner compressor for one vector, in the widest dtype of the tensors.
    Cost: that of the inner compressor, and a copy.
    Source: Barati Eghlidi, Jaggi, "Sparse Communication for Training Deep Networks", 2020.

    >>> import torch
    >>> from phalanx.compression import TensorStates, TopK, WholeGradient, simulate
    >>> rows = [{"large": torch.tensor([3.0, 2.0]), "small": torch.tensor([0.1, 0.2])}]
    >>> means, _ = simulate(WholeGradient(TopK(ratio=0.5)), rows, [TensorStates()])
    >>> means[0]["large"], means[0]["small"]
    (tensor([3., 2.]), tensor([0., 0.]))
    """

    def __post_init__(self) -> None:
        if self.inner.per_tensor_shape:
            raise ValueError(f"inner must not need shapes of tensors, got {self.inner}")
        if self.inner.init(torch.zeros(1)):
            raise ValueError(
                f"inner must not remember (ErrorFeedback belongs around), got {self.inner}"
            )

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """The inner exchange of one vector, cut up again. Its randomness is the first tensor's."""
        if not tensors:
            return (yield from self.inner.exchange(tensors, states, context))
        dtype = tensors[0].dtype
        for x in tensors:
            dtype = torch.promote_types(dtype, x.dtype)
        flat = torch.cat([x.detach().reshape(-1).to(dtype) for x in tensors])
        single = context._replace(names=context.names[:1], out=None)
        found = yield from self.inner.exchange([flat], [()], single)
        mean, sent = (_cut(one, tensors) for one in (found.mean[0], found.sent[0]))
        return found._replace(mean=mean, sent=sent, states=states)


def _cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The pieces of a vector, in the shapes and dtypes of these tensors."""
    pieces = flat.split([x.numel() for x in like])
    return [
        within(piece, x.dtype).clone().view(x.shape) for piece, x in zip(pieces, like, strict=True)
    ]
