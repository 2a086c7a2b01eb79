"""Federated matched averaging (FedMA), layer by layer, in one round or several."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.federated.fusion import Assignment, common_layout
from phalanx.federated.keeping import Keeping
from phalanx.federated.matched_clients import MatchedClients
from phalanx.federated.matching_server import FedMA, MatchingServer
from phalanx.federated.robust_neurons import check_rule
from phalanx.fetch import fetch
from phalanx.losses import Loss, cross_entropy
from phalanx.randomness import seeded
from phalanx.training import Callback, Engine, Local
from phalanx.training.arguments import check_kinds
from phalanx.training.callbacks import Callbacks
from phalanx.training.composition import Composition, composition_of
from phalanx.training.run_folder import RunFolder


class FedMARun(NamedTuple):
    """Outcome of federated matched averaging.

    Attributes:
        model: the global network, in evaluation mode.
        assignments: by client that took part in the whole last round; see `Assignment`.
        rounds: per round a dictionary, as in `metrics.jsonl`: `step`, `clients` (who took part to
            its end), `missing` (why others did not), `suspects` (whose replies were none), `widths`
            by layer, `growth` (parameters by those of the widest client's network),
            `message_bytes` and `broadcast_bytes` of all clients, `loss` of their training,
            `seconds`, and of a test set `test_accuracy` and `test_loss`.
    """

    model: nn.Module
    assignments: dict[int, Assignment]
    rounds: list[dict[str, Any]]


def fedma(
    models: nn.Module | Sequence[nn.Module],
    clients: Sequence[Dataset[tuple[Tensor, ...]]],
    algorithm: FedMA = FedMA(),  # noqa: B008 - frozen
    *,
    loss: Loss = cross_entropy,
    test: Dataset[tuple[Tensor, ...]] | None = None,
    engine: Engine = Local(),  # noqa: B008 - frozen
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    title: str | None = None,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    on_round: Callable[[dict[str, Any]], None] | None = None,
    progress: bool | None = None,
) -> FedMARun:
    """Trains one network on clients' data by federated matched averaging.

    In a round every client trains a network of its own size, cut out of the global one where it
    took part in the round before. Then for each hidden layer: clients send it, the server matches
    and averages its neurons, clients put the result in place of theirs, hold it fixed, and retrain
    the rest. The last layer is averaged by the clients' classes. A client that is late or dead in a
    phase, or sends what was not asked for, is out of the round, and starts the next one from its
    own network.

    Trust: class counts are the clients' word, and averages of matched neurons are plain means,
    unless the algorithm has a robust `rule`.

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
        out: a folder for metrics, checkpoints and weights; nothing is written if None.
        resume: go on with the run in `out`, with the arguments that it was begun with but the
            number of rounds: to the bit, also after a kill.
        checkpoint_every: rounds between checkpoints.
        title: what reports call the run.
        config: text that is kept in the folder as `config.yaml`.
        callbacks: what is called at the start, at rounds and the end; `run.model` is the global
            network.
        on_round: called after every round with its metrics.
        progress: whether progress is shown; see `phalanx.train`.

    Raises:
        ValueError: if numbers of networks and clients differ, a network is not understood (see
            `neuron_layout`), or a client has no samples or targets that are no classes.
        WorkerError: if no client is left in a round; those before it are in the last checkpoint.

    Of the folder, errors are those of `phalanx.train`.
    """
    check_kinds({"loss": loss, "engine": engine, "test": test, "callbacks": callbacks})
    if not isinstance(algorithm, FedMA):
        raise ValueError(f"algorithm must be a FedMA, got {algorithm!r:.80}")
    own = [models] * len(clients) if isinstance(models, nn.Module) else list(models)
    if not clients or len(own) != len(clients):
        raise ValueError(f"models must be 1 or as many as clients, got {len(own)}, {len(clients)}")
    layout = common_layout(own)
    check_rule(algorithm.rule, algorithm.matching, len(own))
    counts = _class_counts(clients, seed)
    factory = MatchedClients(layout, own, clients, counts, loss, seed)
    keeping = Keeping(out, resume, checkpoint_every, callbacks, on_round, progress)
    kept: list[MatchingServer] = []

    def make(told: Callbacks, folder: RunFolder | None) -> MatchingServer:
        kept.append(MatchingServer(factory, algorithm, test, told, folder, title, config))
        if folder is not None:
            kept[0].policy = repr(getattr(engine, "policy", None))
            kept[0].composition = _composition(factory, algorithm)
        return kept[0]

    run = keeping.run(make, lambda: engine.start(factory), algorithm.rounds)
    return FedMARun(kept[0].model(), kept[0].assignments, run.rounds)


def _composition(clients: MatchedClients, algorithm: FedMA) -> Composition:
    told = {one.name: getattr(algorithm, one.name) for one in fields(algorithm)}
    del told["rounds"]
    models = {f"models.{number}": one for number, one in enumerate(clients.models)}
    datasets = {f"clients.{number}": one for number, one in enumerate(clients.datasets)}
    return composition_of(models, datasets, clients.run_seed, loss=clients.loss, algorithm=told)


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
