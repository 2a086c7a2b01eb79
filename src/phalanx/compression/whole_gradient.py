"""Compression of the whole gradient as one vector, with one budget for all layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.communication.collectives import Exchange, ExchangeContext, State
from phalanx.compression.wrapper import Wrapper
from phalanx.floats import within
from phalanx.parameters import ParameterLayout


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
        named = dict(zip(context.names, tensors, strict=True))
        layout = ParameterLayout.like(named)
        single = context._replace(names=context.names[:1], out=None)
        found = yield from self.inner.exchange([layout.flatten(named)], [()], single)

        def cut(flat: Tensor) -> list[Tensor]:
            parts = layout.unflatten(flat)
            return [within(parts[name], x.dtype).clone() for name, x in named.items()]

        return found._replace(mean=cut(found.mean[0]), sent=cut(found.sent[0]), states=states)
