"""Clients of federated matched averaging, and the tasks that the server gives them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.federated.client_training import ClientTraining
from phalanx.federated.fusion import Assignment, MatchedLayer, advance, ready
from phalanx.federated.neurons import NeuronLayout, State, resized, state_of
from phalanx.losses import Loss
from phalanx.training import Collector, Reply, Site, Task, WorkerFactory


class Sent(NamedTuple):
    """Reply of a client to a phase.

    Attributes:
        tensors: those that the server asked for.
        class_counts: `(classes,)` how many samples of each class the client holds.
        loss: mean loss of its training in this phase; None if there was none.
    """

    tensors: State
    class_counts: Tensor
    loss: float | None


@dataclass(frozen=True)
class MatchedClients(WorkerFactory):
    """Factory of clients, each with a network and samples of its own."""

    layout: NeuronLayout
    """Of all networks."""
    models: Sequence[nn.Module]
    """The networks that the clients start with."""
    datasets: Sequence[Dataset[tuple[Tensor, ...]]]
    """Their samples."""
    class_counts: Sequence[Tensor]
    """Of their samples."""
    loss: Loss
    """Mean loss of a batch."""
    run_seed: int
    """Of the run."""
    known: dict[int, State] = field(default_factory=dict)
    """Networks of clients that were left out, as a checkpoint has them."""

    @property
    def num_workers(self) -> int:
        """How many clients there are."""
        return len(self.models)

    @property
    def seed(self) -> int:
        """Of delays that are simulated."""
        return self.run_seed

    def own(self, worker: int) -> Any:
        """The network of a client that has another than at the start."""
        return self.known.get(worker)

    def make(self, owned: Mapping[int, Any], site: Site) -> list[Any]:
        """The clients of these ids."""
        return [MatchedClient(one, self, network) for one, network in owned.items()]


class MatchedClient:
    """A client: its own network, and the network on the way to the global one."""

    def __init__(self, number: int, clients: MatchedClients, network: State | None) -> None:
        self.id, self._clients = number, clients
        first = clients.models[number]
        self._own = first if network is None else resized(first, network)
        self._state = state_of(self._own)
        self._received: State = {}

    def begin(self, assignments: Mapping[int, Assignment], last: State) -> None:
        """The client's own network of a round: cut out of the global one, if it has all of that."""
        layout, global_state = self._clients.layout, self._received | last
        if self.id in assignments and global_state.keys() == layout.tensors.keys():
            own = layout.gather(global_state, assignments[self.id])
            self._own = resized(self._own, own)
        self._state, self._received = state_of(self._own), {}

    def network(self) -> State:
        """The client's own network."""
        return state_of(self._own)

    def receive(self, matched: MatchedLayer) -> None:
        """Puts a matched layer into the network."""
        self._state = advance(self._clients.layout, self._state, matched, self.id)
        self._received |= matched.tensors

    def train(self, training: ClientTraining, *names: int | str) -> float | None:
        """Trains what is not matched yet."""
        clients = self._clients
        model = ready(self._own, self._state, self._received)
        found = training.train(model, clients.datasets[self.id], clients.loss, *names)
        self._state = state_of(model)
        if not self._received:
            self._own = model
        return found

    def send(self, names: Sequence[str], loss: float | None) -> Sent:
        """What the server asked for."""
        counts = self._clients.class_counts[self.id]
        return Sent({name: self._state[name] for name in names}, counts, loss)


@dataclass(frozen=True)
class Phase(Task):
    """Phase of a round: a layer is put in, the rest is trained, and the next one is sent."""

    matched: MatchedLayer | None
    """What was matched last; None at the start of a round."""
    assignments: Mapping[int, Assignment]
    """At the start of a round: which neurons of the global network are whose."""
    last: State
    """At the start of a round: the global network's last layer, which nobody was sent yet."""
    training: ClientTraining
    """How to train."""
    names: tuple[str, ...]
    """What to send."""
    seed: int
    """Of the run."""

    def run(self, worker: MatchedClient, is_over: Callable[[], bool] = lambda: False) -> Reply:
        """One client's part."""
        if self.matched is None:
            worker.begin(self.assignments, self.last)
        else:
            worker.receive(self.matched)
        loss = worker.train(self.training, self.seed, "fedma", self.step, worker.id)
        return Reply(worker.send(self.names, loss))


@dataclass(frozen=True)
class ReadNetwork(Task):
    """Task that reads a client's own network, for a checkpoint."""

    concurrent: ClassVar[bool] = True

    def run(self, worker: MatchedClient, is_over: Callable[[], bool] = lambda: False) -> Reply:
        """Its parameters and buffers."""
        return Reply(worker.network())


class Inbox(Collector):
    """Collector of a phase's replies; one that is not what was asked for counts as none."""

    def __init__(
        self,
        shapes: Mapping[int, Mapping[str, tuple[int, ...]]],
        like: Mapping[str, Tensor],
        num_classes: int,
    ) -> None:
        super().__init__()
        self._shapes, self._like, self._num_classes = shapes, like, num_classes
        self.refused: dict[int, str] = {}
        self.malformed: set[int] = set()

    def take(self, worker: int, value: object) -> None:
        """Keeps a reply that fits."""
        if (problem := self._problem(worker, value)) is None:
            self.values[worker] = value
        else:
            self.refused[worker] = problem
            self.malformed.add(worker)

    def refuse(self, worker: int, reason: str) -> None:
        """Records why there is nothing from a client."""
        self.refused[worker] = reason

    def _problem(self, worker: int, value: object) -> str | None:
        if not isinstance(value, Sent) or not isinstance(value.tensors, dict):
            return "no reply to a phase"
        shapes = self._shapes[worker]
        if value.tensors.keys() != shapes.keys():
            return "other tensors than asked for"
        for name, one in value.tensors.items():
            if not isinstance(one, Tensor) or tuple(one.shape) != shapes[name]:
                return f"{name} is not of shape {shapes[name]}"
            if one.dtype != self._like[name].dtype:
                return f"{name} is not of dtype {self._like[name].dtype}"
            if not one.isfinite().all():
                return f"{name} is not finite"
        counts = value.class_counts
        fits = isinstance(counts, Tensor) and counts.shape == (self._num_classes,)
        if not fits or not (counts.isfinite().all() and counts.min() >= 0 and counts.any()):
            return "class counts are not finite, at least 0 and not all 0, one for each class"
        return None
