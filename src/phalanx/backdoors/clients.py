"""Client sampling: who takes the workers' seats in a round, and a fixed pool of malicious ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from phalanx.attacks import Schedule
from phalanx.checks import require_at_least, require_between, require_share
from phalanx.ordering import Batches, ClientData, PerClient
from phalanx.randomness import generator


def seated(num_clients: int, num_seats: int, step: int, seed: int) -> Int[Tensor, " seats"]:
    """The clients that take part in a round, drawn without replacement, seat by seat."""
    if num_clients < num_seats:
        raise ValueError(
            f"num_clients must be at least the {num_seats} workers of a round, got {num_clients}"
        )
    source = generator(seed, "clients", step)
    return torch.randperm(num_clients, generator=source)[:num_seats]


@dataclass(frozen=True)
class SampledClients(PerClient):
    """Client sampling: in every round each worker stands for another client, with its data.

    Clients hold their samples for good, dealt by the partitioner; the last `num_rare` samples of
    the data set are dealt in turn to a share of the clients, drawn by the seed: see
    `EdgeSet.honest`.

    Source: McMahan, Moore, Ramage, Hampson and Aguera y Arcas, "Communication-Efficient Learning of
    Deep Networks from Decentralized Data", AISTATS 2017 (Algorithm 1); Wang et al., "Attack of the
    Tails", NeurIPS 2020, experiments (honest clients with edge cases).
    """

    num_clients: int = 100
    """Clients, of whom as many take part in a round as there are workers."""

    num_rare: int = 0
    """Samples at the end of the data set that are dealt to few clients."""

    rare_share: float = 0.1
    """Share of the clients that those are dealt to."""

    def __post_init__(self) -> None:
        require_at_least(1, num_clients=self.num_clients)
        require_at_least(0, num_rare=self.num_rare)
        require_share(rare_share=self.rare_share)

    def rare_clients(self, seed: int) -> Int[Tensor, " clients"]:
        """Who is dealt the rare samples."""
        number = max(1, round(self.rare_share * self.num_clients))
        source = generator(seed, "rare clients")
        return torch.randperm(self.num_clients, generator=source)[:number]

    def bind(
        self,
        dataset: Dataset[tuple[Tensor, ...]],
        num_workers: int,
        schedule: Schedule | None,
        seed: int,
    ) -> "SeatedClients":
        """Deals the data set out to the clients, as a function of the seed; see `Order.bind`."""
        seated(self.num_clients, num_workers, 0, seed)
        inputs, targets = dataset[:]
        require_between(0, len(targets) - 1, num_rare=self.num_rare)
        number = len(targets) - self.num_rare
        common = TensorDataset(inputs[:number], targets[:number])
        dealt = super().bind(common, self.num_clients, None, seed)
        held = list(dealt.held)
        rare = torch.arange(number, len(targets))
        clients = self.rare_clients(seed)
        for place, client in enumerate(clients.tolist()):
            held[client] = torch.cat([held[client], rare[place :: len(clients)]])
        return SeatedClients(self.partitioner, self.within, tuple(held))


@dataclass(frozen=True)
class SeatedClients(ClientData):
    """Data sets of sampled clients: `SampledClients` bound to a data set."""

    def samples(self, batches: Batches, step: int, partition: int) -> Int[Tensor, " size"]:
        """Indices of the samples that the client in a worker's seat computes on in a round."""
        clients = seated(len(self.held), batches.num_partitions, step, batches.seed)
        return self.of_client(batches, step, int(clients[partition]))

    def of_client(self, batches: Batches, step: int, client: int) -> Int[Tensor, " size"]:
        """Indices of the samples that a client computes on, if it takes part in a round."""
        return super().samples(batches, step, client)


@dataclass(frozen=True)
class MaliciousClients(Schedule):
    """A fixed pool of malicious clients: a seat is Byzantine when one of them takes it.

    How many attack in a round is a hypergeometric draw. Goes with `SampledClients` of as many
    clients.

    Source: Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020, experiments (fixed-pool attacks).

    >>> pool = MaliciousClients(num_clients=100, num_malicious=10)
    >>> seats = [int(pool.byzantine(step, 10, seed=0).sum()) for step in range(1000)]
    >>> 0.9 < sum(seats) / 1000 < 1.1
    True
    """

    num_clients: int = 100
    """Clients in all."""

    num_malicious: int = 1
    """Malicious ones, drawn once by the seed."""

    def __post_init__(self) -> None:
        require_at_least(1, num_clients=self.num_clients)
        require_between(0, self.num_clients, num_malicious=self.num_malicious)

    def pool(self, seed: int) -> Int[Tensor, " malicious"]:
        """Who is malicious."""
        source = generator(seed, "malicious clients")
        return torch.randperm(self.num_clients, generator=source)[: self.num_malicious]

    def byzantine(self, step: int, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """The seats that malicious clients take in this step."""
        return torch.isin(seated(self.num_clients, num_workers, step, seed), self.pool(seed))
