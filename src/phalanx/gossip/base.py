"""Gossip algorithms: the nodes' tensors in, the mixed tensors out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.gossip.network import Network
from phalanx.randomness import generator

State = tuple[Tensor, ...]
"""What is remembered of one tensor between rounds, by node or by edge."""


class GossipRound(NamedTuple):
    """Which round it is, of which network: where randomness comes from.

    Attributes:
        network: moves the values.
        seed: of the run, the same on all nodes.
        step: number of the round.
        names: of the tensors, in order.
    """

    network: Network
    seed: int
    step: int
    names: tuple[str, ...]

    def generator(self, place: int, *who: int | str) -> torch.Generator:
        """Randomness for one tensor, and for whoever is named: a node, or an edge by its nodes."""
        return generator(self.seed, "gossip", self.step, self.names[place], *who)


@dataclass(frozen=True)
class Gossip(ABC):
    """One round of averaging with the neighbours: hyper-parameters only, never state.

    All nodes that are here are computed at once, on tensors whose first axis they are; the network
    says who they are and moves what they send. So the same code serves all nodes in one process
    and one node in each of many.

    Float tensors of any dtype are mixed. Arithmetic on halves is in float32.
    """

    @abstractmethod
    def init(self, like: Tensor, network: Network) -> State:
        """What is remembered of a tensor like this, `(nodes, ...)`, before the first round."""

    @abstractmethod
    def mix(
        self, tensors: list[Tensor], states: list[State], round: GossipRound
    ) -> tuple[list[Tensor], list[State]]:
        """One round of all nodes that are here.

        Args:
            tensors: `(nodes, ...)` each, finite, in the dtype of arithmetic; not changed.
            states: what is remembered of each.
            round: which one it is, and the network.

        Returns:
            The mixed tensors, and the next states.
        """


__all__ = ["Gossip", "GossipRound", "Network", "State"]
