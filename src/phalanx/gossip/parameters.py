"""Gossip averaging of a model's trained parameters."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.compression import TensorStates
from phalanx.gossip.all_reduce_averaging import AllReduceAveraging
from phalanx.gossip.base import Gossip
from phalanx.gossip.mixing import mix
from phalanx.gossip.network import Network
from phalanx.gossip.process_network import ProcessNetwork
from phalanx.parameters import unfit_parameters

Named = Mapping[str, nn.Parameter] | Iterable[tuple[str, nn.Parameter]]


class ParameterGossip:
    """Averages parameters with the neighbours, whenever `mix` is called.

    In a `torchrun` script each process trains a model of its own, without DDP, and calls `mix` once
    a step. With a `SimulatedNetwork` the parameters are those of all nodes, stacked: see
    `Replicas`. The code is the same, and so are the numbers, to rounding.

    Buffers, such as running statistics, are a node's own, and so is what optimizers remember.

    Attributes:
        algorithm: what all nodes do.
        network: where the nodes are.
        memory: what the nodes here remember.
        last_bytes: `(nodes here,)` int64; what each sent in the last round.

    >>> import torch
    >>> from phalanx.gossip import PowerGossip, Replicas, SimulatedNetwork, Topology
    >>> network = SimulatedNetwork(Topology.ring(8))
    >>> replicas = Replicas(torch.nn.Linear(20, 10), num_nodes=8)
    >>> gossip = ParameterGossip(replicas.by_name(), PowerGossip(), network)
    >>> gossip.mix()
    >>> gossip.last_bytes.tolist()[0]  # 20 and 10 numbers to 2 neighbours
    240
    """

    def __init__(
        self, parameters: Named, algorithm: Gossip, network: Network, *, seed: int = 0
    ) -> None:
        """Nothing is sent yet but a few bytes: processes compare what they are told to do.

        Args:
            parameters: names and parameters, as `model.named_parameters()` gives them; those that
                do not train are left out.
            algorithm: what all nodes do.
            network: where the nodes are.
            seed: of the run, the same everywhere.

        Raises:
            ValueError: if parameters are not dense and real, naming all that are not.
            DisagreementError: on all ranks, if ranks differ in algorithm, topology, seed, versions,
                or the names, shapes or dtypes of parameters.
        """
        pairs = parameters.items() if isinstance(parameters, Mapping) else parameters
        self._parameters = {name: x for name, x in pairs if x.requires_grad}
        if problems := unfit_parameters(self._parameters):
            raise ValueError("; ".join(problems))
        if not self._parameters:
            raise ValueError("parameters must be at least one that trains, got none")
        self.algorithm, self.network, self.seed = algorithm, network, seed
        self.memory = TensorStates()
        self.last_bytes = torch.zeros_like(network.bytes_sent)
        self._alone = isinstance(network, ProcessNetwork)
        if isinstance(network, ProcessNetwork):
            self._agree(network)

    def mix(self) -> None:
        """One round: after a step of the optimizer, or between the gradient and the step.

        Raises:
            NotFiniteError: if there is NaN or infinity in the parameters here.
            DisagreementError, RankLostError, WireError: see `ProcessNetwork`. The parameters have
                not changed.
        """
        self._take(self.algorithm)

    def synchronize(self) -> None:
        """Sets the parameters to their exact mean over all nodes: before the first step, say.

        Gossip keeps the mean, so this is what it converges to. Nothing else is changed.
        """
        memory, self.memory = self.memory, TensorStates()
        try:
            self._take(AllReduceAveraging())
        finally:
            self.memory = memory

    def state_dict(self) -> dict[str, Any]:
        """What this process needs to go on in the same bits; each saves its own.

        Numbers and tensors only: `torch.load(..., weights_only=True)` reads it.
        """
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            ValueError: if it is that of other parameters, of another algorithm, or of other nodes.
        """
        memory = TensorStates.from_state_dict(state)
        for name, x in self._tensors().items():
            wanted = [tuple(one.shape) for one in self.algorithm.init(x, self.network)]
            found = [tuple(one.shape) for one in memory.states.get(name, ())]
            if memory.step and found != wanted:
                raise ValueError(f"state must hold {wanted} for {name}, got {found}")
        if unknown := memory.states.keys() - self._parameters.keys():
            raise ValueError(f"state must be that of the parameters, got {sorted(unknown)}")
        self.memory = memory

    def _take(self, algorithm: Gossip) -> None:
        mixed = mix(algorithm, self.network, self._tensors(), self.memory, seed=self.seed)
        self.memory, self.last_bytes = mixed.memory, mixed.bytes_sent
        with torch.no_grad():
            for name, value in mixed.values.items():
                parameter = self._parameters[name]
                parameter.copy_(value.view_as(parameter))

    def _tensors(self) -> dict[str, Tensor]:
        """The parameters with the nodes as their first axis."""
        found = {name: x.detach() for name, x in self._parameters.items()}
        return {name: x.unsqueeze(0) for name, x in found.items()} if self._alone else found

    def _agree(self, network: ProcessNetwork) -> None:
        """Compares everything that has to be equal: else ranks would wait for ever."""
        facts = [(name, tuple(x.shape), x.dtype) for name, x in sorted(self._parameters.items())]
        network.require_agreement(
            {"algorithm": self.algorithm, "seed": self.seed, "parameters": facts},
            next(iter(self._parameters.values())).device,
        )
