"""Replicas of a model at all nodes, vectorised in one process."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from phalanx.checks import require_at_least
from phalanx.parameters import make_dense, module_modes, set_modes


class Replicas(nn.Module):
    """As many copies of a model as there are nodes, computed by one vectorised call.

    Its parameters are those of the model with the nodes as first axis, and can be given to any
    optimizer that treats every number by itself (SGD, Adam): all nodes step at once. Take the sum
    of the nodes' losses backward, not the mean: each node's gradient is then that of its own loss.

    In training mode its layers are in the modes that those of the model had. Buffers are those of
    the model at every node and do not change in training: use normalisation without running
    statistics, or in evaluation mode. Embeddings have dense gradients.
    Cost: that of the copies; small layers take the time of one large call.

    >>> import torch
    >>> replicas = Replicas(torch.nn.Linear(4, 2), num_nodes=3)
    >>> replicas(torch.ones(3, 5, 4)).shape  # 5 samples at each of 3 nodes
    torch.Size([3, 5, 2])
    >>> [tuple(x.shape) for x in replicas.parameters()]
    [(3, 2, 4), (3, 2)]
    """

    def __init__(self, model: nn.Module, num_nodes: int) -> None:
        """Copies that start with the same weights.

        Args:
            model: one that `torch.func.vmap` can take; not changed.
            num_nodes: how many copies.

        Raises:
            ValueError: if `num_nodes` is below 1.
        """
        super().__init__()
        require_at_least(1, num_nodes=num_nodes)
        stacked, self._buffers_here = stack_module_state([copy.deepcopy(model)] * num_nodes)
        self._names = {name.replace(".", "-"): name for name in stacked}
        for name, place in self._names.items():
            trains = stacked[place].requires_grad
            self.register_parameter(name, nn.Parameter(stacked[place].detach().clone(), trains))
        # In a list, so that its parameters are not taken for ours.
        self._model = [copy.deepcopy(model)]
        make_dense(self._model[0])
        self._modes = module_modes(self._model[0])

    def forward(self, inputs: Tensor) -> Any:
        """Outputs of every node for its own inputs: the nodes are the first axis of both."""
        values: dict[str, Tensor] = {**self.by_name()}

        def one(values: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self._model[0], (values, buffers), (x,))

        set_modes({one: mode and self.training for one, mode in self._modes.items()})
        return vmap(one, randomness="different")(values, self._buffers_here, inputs)

    def by_name(self) -> dict[str, nn.Parameter]:
        """The stacked parameters by the names that the model has for them.

        Randomness comes from names: under these, gossip draws what processes with one model each
        draw. (A module's own names cannot hold dots, so `named_parameters` has dashes.)
        """
        return {place: self.get_parameter(name) for name, place in self._names.items()}

    def model(self, node: int | None = None) -> nn.Module:
        """The model of a node; by default one with the mean of all nodes' parameters."""
        found, stacked = copy.deepcopy(self._model[0]), self.by_name()
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                mine = stacked[name]
                parameter.copy_(mine.mean(dim=0) if node is None else mine[node])
        return found
