"""Federated matched averaging (FedMA), layer by layer, in one round or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.checks import require_at_least
from phalanx.errors import WorkerError
from phalanx.evaluation import evaluate
from phalanx.federated.client_training import ClientTraining
from phalanx.federated.fusion import (
    Assignment,
    LayerMatching,
    MatchedLayer,
    average_last,
    common_layout,
)
from phalanx.federated.matched_clients import Inbox, MatchedClients, Phase, Sent
from phalanx.federated.matching import Matching
from phalanx.federated.neurons import NeuronLayout, State, resized, state_of
from phalanx.fetch import fetch
from phalanx.losses import Loss, cross_entropy
from phalanx.randomness import derive_seed, seeded
from phalanx.training import Engine, Local, Session, Waiting


@dataclass(frozen=True)
class FedMA:
    """Federated matched averaging: how many rounds, how clients train, how neurons are matched.

    Source: Wang, Yurochkin, Sun, Papailiopoulos and Khazaeni, "Federated Learning with Matched
    Averaging", ICLR 2020, sections 3 and 4.
    """

    rounds: int = 1
    """Rounds; in each the whole network travels once in each direction, layer by layer."""
    training: ClientTraining = ClientTraining()  # noqa: RUF009 - frozen
    """Of all layers, on the client's own network, at the start of a round."""
    retraining: ClientTraining | None = ClientTraining()  # noqa: RUF009 - frozen
    """Of the layers that are not matched yet, after each; None for none."""
    last_retraining: ClientTraining | None = None
    """Of the last layer alone, in place of `retraining`; the authors take 3 times the epochs, a
    tenth of the learning rate and a weight decay of 1e-4."""
    matching: Matching = Matching()  # noqa: RUF009 - frozen
    """How neurons are matched."""

    def __post_init__(self) -> None:
        require_at_least(1, rounds=self.rounds)


class FedMARun(NamedTuple):
    """Outcome of federated matched averaging.

    Attributes:
        model: the global network, in evaluation mode.
        assignments: by client that took part in the whole last round; see `Assignment`.
        rounds: per round a dictionary: `round`, `clients` (how many took part to its end),
            `missing` (why others did not, by client), `widths` by layer, `growth` (parameters by
            those of the widest client's network), `bytes_up` and `bytes_down` of all clients,
            `loss` of their training, and of a test set `accuracy` and `test_loss`.
    """

    model: nn.Module
    assignments: dict[int, Assignment]
    rounds: list[dict[str, Any]]


def fedma(
    models: nn.Module | Sequence[nn.Module],
    clients: Sequence[Dataset[tuple[Tensor, ...]]],
    algorithm: FedMA = FedMA(),
    *,
    loss: Loss = cross_entropy,
    test: Dataset[tuple[Tensor, ...]] | None = None,
    engine: Engine = Local(),  # noqa: B008 - frozen
    seed: int = 0,
) -> FedMARun:
    """Trains one network on clients' data by federated matched averaging.

    In a round every client trains a network of its own size, cut out of the global one where it
    took part in the round before. Then for each hidden layer: clients send it, the server matches
    and averages its neurons, clients put the result in place of theirs, hold it fixed, and retrain
    the rest. The last layer is averaged by the clients' classes. A client that is late or dead in a
    phase, or sends what was not asked for, is out of the round, and starts the next one from its
    own network.

    Trust: class counts are the clients' word; averages of matched neurons are plain means.

    Cost: `layers + 1` calls a round; see `match_layer` for the server's work.
    Source: see `FedMA`.

    Args:
        models: a network for all clients to start with, or one for each, of any widths.
        clients: their data sets, of pairs of an input and a class.
        algorithm: rounds, training and matching.
        loss: mean loss of a batch.
        test: what the global network is tested on after each round.
        engine: where clients run.
        seed: of the order of samples and of matching.

    Raises:
        ValueError: if numbers of networks and clients differ, a network is not understood (see
            `neuron_layout`), or a client has no samples or targets that are no classes.
        WorkerError: if no client is left in a round.
    """
    own = [models] * len(clients) if isinstance(models, nn.Module) else list(models)
    if not clients or len(own) != len(clients):
        raise ValueError(f"models must be 1 or as many as clients, got {len(own)}, {len(clients)}")
    layout = common_layout(own)
    counts = _class_counts(clients, seed)
    factory = MatchedClients(layout, own, clients, counts, loss, seed)
    with engine.start(factory) as session:
        run = _Server(session, factory, algorithm)
        for number in range(algorithm.rounds):
            row = run.round(number)
            if test is not None:
                found = evaluate(run.model(), loss, test, test)
                row |= {"accuracy": found.accuracy, "test_loss": found.loss}
            run.rows.append(row)
    return FedMARun(run.model(), run.assignments, run.rows)


def _class_counts(clients: Sequence[Dataset[tuple[Tensor, ...]]], seed: int) -> list[Tensor]:
    empty = [number for number, one in enumerate(clients) if len(one) == 0]  # type: ignore[arg-type]
    if empty:
        raise ValueError(f"clients must hold at least 1 sample each, got none of {empty}")
    targets = []
    for one in clients:
        with seeded(seed, "targets"):  # the data set may crop or flip at random
            parts = torch.arange(len(one)).split(1024)  # type: ignore[arg-type]
            targets.append(torch.cat([fetch(one, part)[1].flatten() for part in parts]))
    wrong = [
        number for number, one in enumerate(targets) if one.is_floating_point() or one.min() < 0
    ]
    if wrong:
        raise ValueError(f"clients must have classes from 0 on as targets, got others of {wrong}")
    classes = 1 + max(int(one.max()) for one in targets)
    return [torch.bincount(one, minlength=classes) for one in targets]


class _Server:
    """The server of a run: its clients' session, and the global network."""

    def __init__(self, session: Session, clients: MatchedClients, algorithm: FedMA) -> None:
        self._session, self._clients, self._algorithm = session, clients, algorithm
        self._like = [state_of(model) for model in clients.models]
        self._widths = [self._layout.widths(state) for state in self._like]
        self._state: State = {}
        self._waiting: tuple[float, ...] = ()
        self._step = 0
        self.assignments: dict[int, Assignment] = {}
        self.rows: list[dict[str, Any]] = []

    @property
    def _layout(self) -> NeuronLayout:
        return self._clients.layout

    def model(self) -> nn.Module:
        """The global network."""
        return resized(self._clients.models[0], self._state).eval()

    def round(self, number: int) -> dict[str, Any]:
        """One round; what there is to say of it."""
        layout, algorithm = self._layout, self._algorithm
        server = LayerMatching(
            layout, algorithm.matching, derive_seed(self._clients.run_seed, "round", number)
        )
        row: dict[str, Any] = {"round": number, "missing": {}, "bytes_up": 0, "bytes_down": 0}
        active, matched, training = list(range(self._clients.num_workers)), None, algorithm.training
        losses: list[float] = []
        for place, layer in enumerate((*layout.layers, None)):
            done = layout.layers[:place]
            names = layout.last() if layer is None else layout.completed_by(layer, done)
            sent = self._phase(active, matched, training, names, row)
            active = list(sent)
            losses += [one.loss for one in sent.values() if one.loss is not None]
            states = {client: one.tensors for client, one in sent.items()}
            if layer is not None:
                matched = server.match(layer, states)
                training = self._retraining(place)
        counts = torch.stack([one.class_counts for one in sent.values()])
        self._state = server.finished | average_last(layout, states, counts)
        self.assignments = {client: server.assignments.get(client, {}) for client in active}
        size = max(sum(one.numel() for one in state.values()) for state in self._like)
        return row | {
            "clients": len(active),
            "widths": layout.widths(self._state),
            "growth": sum(one.numel() for one in self._state.values()) / size,
            "loss": sum(losses) / len(losses) if losses else None,
        }

    def _retraining(self, place: int) -> ClientTraining:
        algorithm = self._algorithm
        last = place == len(self._layout.layers) - 1
        chosen = (algorithm.last_retraining if last else None) or algorithm.retraining
        return chosen or ClientTraining(epochs=0)

    def _phase(
        self,
        active: list[int],
        matched: MatchedLayer | None,
        training: ClientTraining,
        names: list[str],
        row: dict[str, Any],
    ) -> dict[int, Sent]:
        """What clients send in a phase; those that do not are noted."""
        start = matched is None
        last = {name: self._state[name] for name in self._layout.last()} if self._state else {}
        task = Phase(
            self._step,
            matched,
            self.assignments if start else {},
            last if start else {},
            training,
            tuple(names),
            self._clients.run_seed,
        )
        shapes = {client: self._shapes(client, names, matched) for client in active}
        inbox = Inbox(shapes, self._like[0], len(self._clients.class_counts[0]))
        waiting = Waiting(self._session.policy, self._waiting)
        replies = self._session.call(task, active, waiting, inbox)
        self._step, self._waiting = self._step + 1, replies.waiting
        missing = inbox.refused | replies.missing
        sent = {one: inbox.values[one] for one in active if one not in missing}
        row["missing"] |= missing
        down = last if start else matched.tensors if matched is not None else {}
        row["bytes_down"] += len(active) * sum(one.nbytes for one in down.values())
        if matched is not None:
            row["bytes_down"] += sum(matched.assignments[one].nbytes for one in active)
        row["bytes_up"] += sum(t.nbytes for one in sent.values() for t in one.tensors.values())
        if not sent:
            told = f"no client is left in round {row['round']}: {row['missing']}"
            raise WorkerError(told, reasons=missing)
        return sent

    def _shapes(
        self, client: int, names: list[str], matched: MatchedLayer | None
    ) -> dict[str, tuple[int, ...]]:
        """What a client's tensors have to be like: matched layers are as wide as the server's."""
        if matched is None:
            self._current = [dict(one) for one in self._widths]
        else:
            self._current[client][matched.layer] = matched.width
        found = {}
        for name in names:
            axes = zip(self._like[client][name].shape, self._layout.tensors[name].axes, strict=True)
            found[name] = tuple(
                size
                if axis is None
                else axis.before * self._current[client][axis.layer] * axis.after
                for size, axis in axes
            )
        return found
