"""Base optimizers with frozen statistics, for Mime: steps that use them, and their update."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from phalanx.checks import require_below_one, require_finite_above

Statistics = Sequence[Tensor]
"""What an optimizer knows of earlier gradients, `(dim,)` each, or numbers."""


@dataclass(frozen=True)
class FrozenOptimizer(ABC):
    """An optimizer as two functions: the step by given statistics, and the statistics' update.

    Source: Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the Centralized
    Barrier for Cross-Device Federated Learning", NeurIPS 2021 (table 1).
    """

    def init(self, like: Tensor) -> Statistics:
        """The statistics before the first gradient."""
        return ()

    @abstractmethod
    def step(self, points: Tensor, gradient: Tensor, statistics: Statistics, lr: float) -> Tensor:
        """Where a step leads; the statistics stay as they are (U in the paper).

        Args:
            points: `(dim,)`, or `(clients, dim)`.
            gradient: at the points.
            statistics: of the server.
            lr: learning rate.
        """

    def update(self, point: Tensor, gradient: Tensor, statistics: Statistics) -> Statistics:
        """The statistics after one more gradient, taken at a point (V in the paper)."""
        return statistics


@dataclass(frozen=True)
class FrozenSGD(FrozenOptimizer):
    """SGD: `u <- u - lr g`; there are no statistics."""

    def step(self, points: Tensor, gradient: Tensor, statistics: Statistics, lr: float) -> Tensor:
        """One step."""
        return points - lr * gradient


@dataclass(frozen=True)
class FrozenMomentum(FrozenOptimizer):
    """SGD with momentum: `u <- u - lr ((1 - b) g + b m)`, `m <- (1 - b) g + b m`.

    The new gradient counts `1 - b`, so that the learning rate is about `1 / (1 - b)` times that of
    torch's momentum.
    """

    momentum: float = 0.9
    """What the momentum keeps of itself from round to round (b)."""

    def __post_init__(self) -> None:
        require_below_one(momentum=self.momentum)

    def init(self, like: Tensor) -> Statistics:
        """No momentum."""
        return (torch.zeros_like(like),)

    def step(self, points: Tensor, gradient: Tensor, statistics: Statistics, lr: float) -> Tensor:
        """One step."""
        return points - lr * ((1 - self.momentum) * gradient + self.momentum * statistics[0])

    def update(self, point: Tensor, gradient: Tensor, statistics: Statistics) -> Statistics:
        """The new momentum."""
        return ((1 - self.momentum) * gradient + self.momentum * statistics[0],)


@dataclass(frozen=True)
class FrozenRMSProp(FrozenOptimizer):
    """RMSProp: `u <- u - lr g / (sqrt(v) + eps)`, `v <- (1 - b2) g^2 + b2 v`."""

    beta2: float = 0.99
    """What the mean of the squares keeps of itself from round to round (b2)."""

    eps: float = 1e-3
    """Added to the root; not smaller, since v stays while clients step."""

    def __post_init__(self) -> None:
        require_below_one(beta2=self.beta2)
        require_finite_above(0, eps=self.eps)

    def init(self, like: Tensor) -> Statistics:
        """Squares of zero."""
        return (torch.zeros_like(like),)

    def step(self, points: Tensor, gradient: Tensor, statistics: Statistics, lr: float) -> Tensor:
        """One step."""
        return points - lr * gradient / (statistics[-1].sqrt() + self.eps)

    def update(self, point: Tensor, gradient: Tensor, statistics: Statistics) -> Statistics:
        """The new mean of the squares."""
        return ((1 - self.beta2) * gradient**2 + self.beta2 * statistics[0],)


@dataclass(frozen=True)
class FrozenAdagrad(FrozenRMSProp):
    """Adagrad: `u <- u - lr g / (sqrt(v) + eps)`, `v <- v + g^2`; `beta2` is not used."""

    def update(self, point: Tensor, gradient: Tensor, statistics: Statistics) -> Statistics:
        """The new sum of the squares."""
        return (statistics[0] + gradient**2,)


@dataclass(frozen=True)
class FrozenAdam(FrozenRMSProp):
    """Adam without bias correction, with the momentum of `FrozenMomentum` over RMSProp's root.

    `u <- u - lr ((1 - b1) g + b1 m) / (sqrt(v) + eps)`.
    """

    beta1: float = 0.9
    """What the momentum keeps of itself from round to round (b1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_below_one(beta1=self.beta1)

    def init(self, like: Tensor) -> Statistics:
        """No momentum, squares of zero."""
        return torch.zeros_like(like), torch.zeros_like(like)

    def step(self, points: Tensor, gradient: Tensor, statistics: Statistics, lr: float) -> Tensor:
        """One step."""
        mixed = (1 - self.beta1) * gradient + self.beta1 * statistics[0]
        return super().step(points, mixed, statistics, lr)

    def update(self, point: Tensor, gradient: Tensor, statistics: Statistics) -> Statistics:
        """The new momentum, and mean of the squares."""
        first = (1 - self.beta1) * gradient + self.beta1 * statistics[0]
        return first, *super().update(point, gradient, statistics[1:])


@dataclass(frozen=True)
class FrozenTorch(FrozenOptimizer):
    """Any optimizer of torch: a step is taken from a copy of its state, which is thrown away.

    Its conventions are its own: the momentum of `torch.optim.SGD` adds the whole gradient, so that
    learning rates are not those of `FrozenMomentum`, and the step uses the moments that the local
    gradient would lead to. Its learning rate is the algorithm's. What it remembers must be tensors.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam
    """Makes the optimizer from the parameters."""

    def init(self, like: Tensor) -> Statistics:
        """What the optimizer has before its first step: nothing."""
        self.update(torch.zeros_like(like[:1]), torch.zeros_like(like[:1]), ())
        return ()

    def step(self, points: Tensor, gradient: Tensor, statistics: Statistics, lr: float) -> Tensor:
        """One step from a copy of the state."""
        return self._stepped(points, gradient, statistics, lr)[0]

    def update(self, point: Tensor, gradient: Tensor, statistics: Statistics) -> Statistics:
        """The state after a step that is not taken."""
        return self._stepped(point, gradient, statistics, None)[1]

    def _stepped(
        self, points: Tensor, gradient: Tensor, statistics: Statistics, lr: float | None
    ) -> tuple[Tensor, Statistics]:
        parameter = nn.Parameter(points.clone())
        made = self.optimizer([parameter])
        if lr is not None:
            made.param_groups[0]["lr"] = lr
        if statistics:
            blank = nn.Parameter(torch.zeros_like(points.reshape(-1)[:1]))
            blank.grad = torch.zeros_like(blank)
            other = self.optimizer([blank])
            other.step()
            names = sorted(other.state[blank])
            for name, one in zip(names, statistics, strict=True):
                own = one.expand_as(points) if one.ndim else one
                made.state[parameter][name] = own.clone()
        parameter.grad = gradient.clone()
        made.step()
        state = made.state[parameter]
        odd = [name for name in state if not isinstance(state[name], Tensor)]
        if odd:
            raise ValueError(
                f"optimizer must remember tensors only, got {type(made).__name__}, of which "
                f"{sorted(odd)} are none"
            )
        return parameter.detach(), tuple(state[name].detach() for name in sorted(state))
