"""Server of federated matched averaging: rounds, layer by layer, and what is kept of them."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.checks import require_at_least
from phalanx.errors import TooManyByzantineError, WorkerError
from phalanx.evaluation import evaluate as measured
from phalanx.federated.client_training import ClientTraining
from phalanx.federated.fusion import Assignment, LayerMatching, MatchedLayer, average_last
from phalanx.federated.keeping import ServerRounds
from phalanx.federated.matched_clients import Inbox, MatchedClients, Phase, ReadNetwork, Sent
from phalanx.federated.matching import Matching
from phalanx.federated.neurons import NeuronLayout, State, resized, state_of
from phalanx.federated.robust_neurons import enough
from phalanx.randomness import derive_seed
from phalanx.training import Collector, Session, Waiting
from phalanx.training.callbacks import Callbacks
from phalanx.training.checkpoint import Checkpoint
from phalanx.training.run_folder import RunFolder


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
    rule: Aggregator = Mean()  # noqa: RUF009 - frozen
    """How matched neurons and the last layer are aggregated; see `fuse`. A robust one bears clients
    that send false neurons in the phases, though not what they do to who is matched with whom."""

    def __post_init__(self) -> None:
        require_at_least(1, rounds=self.rounds)


class MatchingServer(ServerRounds):
    """The server of a run: the global network, and what it knows of the clients."""

    def __init__(
        self,
        clients: MatchedClients,
        algorithm: FedMA,
        test: Dataset[tuple[Tensor, ...]] | None,
        callbacks: Callbacks,
        folder: RunFolder | None,
        title: str | None,
        config: str | None,
    ) -> None:
        names = () if test is None else ("test_accuracy", "test_loss")
        first, seed = clients.models[0], clients.run_seed
        super().__init__(first, seed, callbacks, folder, title or "FedMA", config, names)
        self._clients, self._algorithm, self._test = clients, algorithm, test
        self._like = [state_of(model) for model in clients.models]
        self._widths = [self._layout.widths(state) for state in self._like]
        self._state: State = {}
        self._waiting: tuple[float, ...] = ()
        self._resumed = False  # clients do not hold the matched layers then
        self.policy = ""  # when phases are over, in words
        self.assignments: dict[int, Assignment] = {}

    @property
    def _layout(self) -> NeuronLayout:
        return self._clients.layout

    def model(self) -> nn.Module:
        """The global network."""
        found = resized(self._clients.models[0], self._state or self._like[0])
        return found.eval()

    def summary(self) -> Mapping[str, Any]:
        """Clients, and the network that came of them."""
        return {
            "num_clients": self._clients.num_workers,
            "num_workers": self._clients.num_workers,
            "decoder": repr(self._algorithm.rule),
            "compute": repr(self._algorithm),
            "widths": self._layout.widths(self._state),
            "parts": [self._algorithm],
        }

    def open(self) -> None:
        """Also writes down who holds what, for the report."""
        super().open()
        if self.folder is not None and not self.folder.holds_json("partition.json"):
            counts = [one.tolist() for one in self._clients.class_counts]
            self.folder.write_json("partition.json", {"class_counts": counts})

    def checkpoint(self, session: Session, step: int) -> None:
        """Asks those who were left out for their networks first; others get the global one."""
        known, everybody = self._clients.known, range(self._clients.num_workers)
        known.clear()
        left = [one for one in everybody if one not in self.assignments]
        if left and self.folder is not None:
            found = Collector()
            session.call(ReadNetwork(step), left, collector=found)
            known.update({one: found.values[one] for one in left if one in found.values})
        super().checkpoint(session, step)

    def _saved(self, step: int) -> Checkpoint:
        told = {"state": self._state, "assignments": self.assignments}
        return Checkpoint(
            step,
            dict(self.composition),
            torch.empty(0),
            told,
            waiting=list(self._waiting),
            policy=self.policy,
            workers={
                client: {name: [one] for name, one in state.items()}
                for client, state in self._clients.known.items()
            },
            callbacks=self.callbacks.state_dict(),
        )

    def _restore(self, saved: Checkpoint, changes: Collection[str]) -> None:
        told = saved.server_step
        self._state, self._resumed = dict(told["state"]), True
        self.assignments = {client: dict(one) for client, one in told["assignments"].items()}
        self._waiting = tuple(saved.waiting) if saved.policy == self.policy else ()
        networks = saved.workers.items()
        self._clients.known.update(
            {client: {name: one[0] for name, one in state.items()} for client, state in networks}
        )
        self.callbacks.load_state_dict(saved.callbacks)
        self.run.model = self.model()

    def round(self, session: Session, step: int, *, evaluate: bool) -> None:
        """One round, layer by layer."""
        began = time.perf_counter()
        row, *found = self._matched(session, step)
        self.open()  # from here on the round is done
        self._state, self.assignments, self._waiting = found
        self._resumed = False  # clients hold the matched layers now
        self.run.model = self.model()
        if self._test is not None and evaluate:
            tested = measured(self.run.model, self._clients.loss, self._test, self._test)
            row |= {"test_accuracy": tested.accuracy, "test_loss": tested.loss}
        self.tell({**row, "seconds": time.perf_counter() - began}, evaluated=evaluate)

    def _matched(self, session: Session, number: int) -> tuple[Any, ...]:
        """All phases of a round: what there is to say of it, then what is to be remembered."""
        layout, algorithm, waiting = self._layout, self._algorithm, self._waiting
        server = LayerMatching(
            layout,
            algorithm.matching,
            derive_seed(self._clients.run_seed, "round", number),
            algorithm.rule,
        )
        row: dict[str, Any] = {"step": number, "missing": {}, "suspects": [], "outliers": []}
        row |= {"message_bytes": 0, "broadcast_bytes": 0}
        active, matched, training = list(range(self._clients.num_workers)), None, algorithm.training
        losses: list[float] = []
        for place, layer in enumerate((*layout.layers, None)):
            done = layout.layers[:place]
            names = layout.last() if layer is None else layout.completed_by(layer, done)
            step = number * (len(layout.layers) + 1) + place
            task = self._task(step, matched, training, names)
            sent, waiting = self._phase(session, active, task, waiting, row)
            active = list(sent)
            losses += [one.loss for one in sent.values() if one.loss is not None]
            states = {client: one.tensors for client, one in sent.items()}
            if layer is not None:
                matched = server.match(layer, states)
                training = self._retraining(place)
        counts = torch.stack([one.class_counts for one in sent.values()])
        state = server.finished | average_last(layout, states, counts, algorithm.rule)
        assignments = {client: server.assignments.get(client, {}) for client in active}
        size = max(sum(one.numel() for one in state.values()) for state in self._like)
        row |= {
            "clients": active,
            "widths": layout.widths(state),
            "growth": sum(one.numel() for one in state.values()) / size,
            "loss": sum(losses) / len(losses) if losses else None,
        }
        return row, state, assignments, waiting

    def _retraining(self, place: int) -> ClientTraining:
        algorithm = self._algorithm
        last = place == len(self._layout.layers) - 1
        chosen = (algorithm.last_retraining if last else None) or algorithm.retraining
        return chosen or ClientTraining(epochs=0)

    def _task(
        self,
        step: int,
        matched: MatchedLayer | None,
        training: ClientTraining,
        names: Sequence[str],
    ) -> Phase:
        assignments, last = self.assignments, self._state
        if matched is not None:
            assignments, last = {}, {}
        elif last and not self._resumed:  # else clients lack the layers that they had been sent
            last = {name: last[name] for name in self._layout.last()}
        seed = self._clients.run_seed
        return Phase(step, matched, assignments, last, training, tuple(names), seed)

    def _phase(
        self,
        session: Session,
        active: list[int],
        task: Phase,
        memory: tuple[float, ...],
        row: dict[str, Any],
    ) -> tuple[dict[int, Sent], tuple[float, ...]]:
        """What clients send in a phase; those that do not are noted."""
        matched = task.matched
        shapes = {client: self._shapes(client, task.names, matched) for client in active}
        inbox = Inbox(shapes, self._like[0], len(self._clients.class_counts[0]))
        replies = session.call(task, active, Waiting(session.policy, memory), inbox)
        missing = inbox.refused | replies.missing
        sent = {one: inbox.values[one] for one in active if one not in missing}
        row["missing"] |= {str(client): why for client, why in missing.items()}
        row["suspects"] = sorted({*row["suspects"], *inbox.malformed})
        if matched is None:
            down = [task.last[name] for name in self._layout.last() if name in task.last]
        else:
            down = [*matched.tensors.values()]
            row["broadcast_bytes"] += sum(matched.assignments[one].nbytes for one in active)
        row["broadcast_bytes"] += len(active) * sum(one.nbytes for one in down)
        row["message_bytes"] += sum(t.nbytes for one in sent.values() for t in one.tensors.values())
        if not sent:
            told = f"no client is left in round {row['step']}: {row['missing']}"
            raise WorkerError(told, reasons=missing)
        rule = self._algorithm.rule
        if not enough(rule, len(sent)):
            told = f"{rule} needs more than the {len(sent)} clients left in round {row['step']}"
            lost = sorted(map(int, row["missing"]))
            bound = rule.num_tolerated(self._clients.num_workers)
            raise TooManyByzantineError(f"{told}: {row['missing']}", workers=lost, bound=bound)
        return sent, replies.waiting

    def _shapes(
        self, client: int, names: Sequence[str], matched: MatchedLayer | None
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
