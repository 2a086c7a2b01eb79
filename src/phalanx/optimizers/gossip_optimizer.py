"""Gossip averaging beside the steps of any optimizer."""

from collections.abc import Callable
from typing import Any, Literal

from torch.optim import Optimizer

from phalanx.gossip import ParameterGossip
from phalanx.optimizers.scaled import unscale


class GossipOptimizer(Optimizer):
    """An optimizer each of whose steps goes with a round of gossip.

    It shares parameter groups, state and defaults with the optimizer that it wraps, so schedulers
    may be given either. Parameters of a group that is added later are stepped, and not averaged.
    Where `GradScaler` leaves out a step for infinite gradients, the round is not left out: the
    neighbours wait for it. See `decentralize` for processes.

    >>> import torch
    >>> from phalanx.gossip import DPSGD, ParameterGossip, Replicas, SimulatedNetwork, Topology
    >>> replicas = Replicas(torch.nn.Linear(4, 2), num_nodes=4)
    >>> sgd = torch.optim.SGD(replicas.parameters(), lr=0.1)
    >>> network = SimulatedNetwork(Topology.ring(4))
    >>> gossip = ParameterGossip(replicas.by_name(), DPSGD(), network)
    >>> optimizer = GossipOptimizer(sgd, gossip)
    >>> schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    >>> replicas(torch.ones(4, 3, 4)).square().mean().backward()
    >>> optimizer.step()
    >>> schedule.step()
    >>> gossip.memory.step, round(sgd.param_groups[0]["lr"], 4)
    (1, 0.01)
    """

    _step_supports_amp_scaling = True  # `GradScaler` then calls `step` whatever it found

    def __init__(
        self,
        optimizer: Optimizer,
        gossip: ParameterGossip,
        first: Literal["gossip", "step"] = "gossip",
    ) -> None:
        """Wraps an optimizer of the parameters that are gossiped.

        Args:
            optimizer: takes the steps.
            gossip: of the same parameters.
            first: what comes first. "gossip" is D-PSGD as published: the gradient at the old
                parameters is applied to the averaged ones. "step" averages what has been updated.

        Raises:
            ValueError: if `first` is neither.
        """
        if first not in ("gossip", "step"):
            raise ValueError(f"first must be gossip or step, got {first}")
        super().__init__([dict(group) for group in optimizer.param_groups], optimizer.defaults)
        self.optimizer, self.gossip, self.first = optimizer, gossip, first
        self._share()

    def _share(self) -> None:
        """Takes the wrapped optimizer's groups and state for its own: the objects, not copies."""
        self.defaults, self.state = self.optimizer.defaults, self.optimizer.state
        self.param_groups = self.optimizer.param_groups

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step and a round. With a closure, gradients are computed where the step is taken."""
        if self.first == "gossip":
            self.gossip.mix()
        loss = None if self._left_out() else self.optimizer.step(closure)
        if self.first == "step":
            self.gossip.mix()
        return loss

    def _left_out(self) -> bool:
        """Whether `GradScaler` found gradients that are not finite; it unscales them if not."""
        if bool(getattr(self, "found_inf", False)):
            return True
        unscale(self)
        return False

    def state_dict(self) -> dict[str, Any]:
        """That of the wrapped optimizer, with that of the gossip under "gossip".

        Every process saves its own. The learning rate is in it, that of a scheduler is not.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self.optimizer.state_dict() | {"gossip": self.gossip.state_dict()}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            ValueError: if it is that of other parameters, of another algorithm, or of other nodes.
        """
        state = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state = before(self, state) or state
        self.gossip.load_state_dict(state.pop("gossip"))
        self.optimizer.load_state_dict(state)
        self._share()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what is shared stays shared."""
        own = {name: getattr(self, name) for name in ("optimizer", "gossip", "first")}
        return super().__getstate__() | own
