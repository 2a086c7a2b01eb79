"""1-bit Adam: compressed momenta once second moments have settled."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from phalanx.communication.agreement import StepCheck, require_agreement
from phalanx.communication.point_to_point import Peers
from phalanx.compression.averaging import TensorStates
from phalanx.compression.base import Compressor
from phalanx.compression.distributed import communicate
from phalanx.compression.error_feedback import ErrorFeedback
from phalanx.compression.two_stage import TwoStage
from phalanx.compression.uncompressed import Uncompressed
from phalanx.errors import NotFiniteError
from phalanx.optimizers.scaled import unscale
from phalanx.parameters import unfit_parameters


class OneBitAdam(torch.optim.Optimizer):
    """Adam at first; then its second moments stay, and workers send one bit a value of momenta.

    Adam's step is no linear function of the gradient, so errors of compressed gradients do not
    cancel in it. With second moments that stay it is one of the momentum, whose errors do. Each
    worker steps on its own gradients, and `step` averages what is to be averaged: wrap the model in
    nothing, or call `backward` under DDP's `no_sync`.

    The step has Adam's correction for moments that begin at zero; once second moments stay, their
    correction does too. Weight decay is decoupled.
    Wire: all values for `freeze_step` steps, then the compressor's.
    Source: Tang et al., "1-bit Adam: Communication Efficient Large-Scale Training with Adam's
    Convergence Speed", ICML 2021, algorithm 1.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = OneBitAdam(model.named_parameters(), lr=0.01, freeze_step=10)
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.memory.step
    1
    >>> dist.destroy_process_group()
    """

    _step_supports_amp_scaling = True  # `GradScaler` then calls `step` whatever it found

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        freeze_step: int = 100,
        compressor: Compressor | None = None,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """An optimizer of these parameters, which are the same on all workers.

        Args:
            named_parameters: as `model.named_parameters()` gives them.
            lr: learning rate.
            betas: shares that the moments keep in a step.
            eps: what is added to the root of the second moments.
            weight_decay: share of the weights that a step of learning rate 1 takes away.
            freeze_step: steps of plain Adam, at the beginning; 15 to 20 % of all are usual.
            compressor: of momenta; by default signs in two stages, with errors remembered.
            seed: of the run, the same on all workers.
            group: the processes; all of them by default.

        Raises:
            ValueError: if a number is out of its range, or parameters are not dense and real.
        """
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(
                f"lr, eps and weight_decay must be at least 0, got {lr}, {eps} and {weight_decay}"
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {betas}")
        if freeze_step < 1:
            raise ValueError(f"freeze_step must be at least 1, got {freeze_step}")
        named = list(named_parameters)
        if problems := unfit_parameters(dict(named)):
            raise ValueError("; ".join(problems))
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([parameter for _, parameter in named], defaults)
        self.freeze_step, self.memory = freeze_step, TensorStates()
        self.compressor = compressor or ErrorFeedback(TwoStage())
        self._names = {parameter: name for name, parameter in named}
        self._seed, self._group, self._agreed = seed, group, False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients of all workers, which call it together.

        Where a worker's `GradScaler` found gradients that are not finite, all workers leave out the
        step.

        Raises:
            DisagreementError: on all workers, if they differ in fields, parameters or versions, or
                are at different steps.
            NotFiniteError: on all workers, before anything is changed, naming those with NaN or
                infinity in their gradients. Not under a `GradScaler`.
            RankLostError: if a worker is gone or silent.
        """
        self._agree()
        scaled = getattr(self, "found_inf", None) is not None
        if scaled:
            unscale(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        frozen = self.memory.step >= self.freeze_step
        try:
            told, self.memory = communicate(
                self.compressor if frozen else Uncompressed(),
                {
                    self._names[parameter]: self._sent(parameter, group["betas"][0], frozen)
                    for group in self.param_groups
                    for parameter in group["params"]
                },
                self.memory,
                seed=self._seed,
                group=self._group,
            )
        except NotFiniteError:
            if scaled:  # on all workers: nothing was sent, and nothing changed
                return loss
            raise
        for group in self.param_groups:
            for parameter in group["params"]:
                self._move(parameter, told[self._names[parameter]], group, frozen)
        return loss

    def _agree(self) -> None:
        """Compares what workers are told to do, once, and the number of the step."""
        peers = Peers(self._group)
        first = next(iter(self._names))
        if not self._agreed:
            facts = {
                "compressor": self.compressor,
                "freeze_step": self.freeze_step,
                "seed": self._seed,
                "parameters": [(name, tuple(x.shape), x.dtype) for x, name in self._names.items()],
            }
            require_agreement(peers, {"optimizer": "OneBitAdam", **facts}, first.device)
            self._agreed = True
        StepCheck(peers, self.memory.step, first.device).finish()

    def _sent(self, parameter: nn.Parameter, keep: float, frozen: bool) -> Tensor:
        """The gradient; later the momentum that the worker would have, were it alone."""
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        if not frozen:
            return gradient
        return torch.lerp(gradient, self.state[parameter]["first"], keep)

    def _move(
        self, parameter: nn.Parameter, told: Tensor, group: Mapping[str, Any], frozen: bool
    ) -> None:
        """Adam's step, given the mean gradient, or the mean momentum."""
        state, (keep, keep_square) = self.state[parameter], group["betas"]
        if not state:
            state["first"], state["second"] = torch.zeros_like(told), torch.zeros_like(told)
        if frozen:
            state["first"].copy_(told)
        else:
            state["first"].lerp_(told, 1 - keep)
            state["second"].mul_(keep_square).addcmul_(told, told, value=1 - keep_square)
        step = self.memory.step
        square = state["second"] / (1 - keep_square ** min(step, self.freeze_step))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] / (1 - keep**step)
        parameter.addcdiv_(state["first"], square.sqrt_().add_(group["eps"]), value=-rate)

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer, and what the compressor remembers: every worker saves its own."""
        return super().state_dict() | {"memory": self.memory.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what this worker's `state_dict` gave."""
        state = dict(state_dict)
        self.memory = TensorStates.from_state_dict(state.pop("memory"))
        super().load_state_dict(state)
