"""Flower apps of a federated algorithm: the same stages as in one process, by Flower's messages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from phalanx.aggregation import Aggregator, Mean
from phalanx.evaluation import Metric
from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.client_privacy import ClientPrivacy
from phalanx.federated.flower.client import client_app
from phalanx.federated.flower.plan import Data, FederationPlan
from phalanx.federated.flower.server import server_app
from phalanx.losses import Loss, cross_entropy
from phalanx.training import AggregationProtocol, Callback
from phalanx.transforms import MessageTransform


def as_flower(
    algorithm: FederatedAlgorithm,
    model_fn: Callable[[], nn.Module],
    data_fn: Callable[[int], Data],
    *,
    num_clients: int,
    rounds: int = 100,
    clients_per_round: int | None = None,
    rule: Aggregator = Mean(),  # noqa: B008 - frozen
    aggregation: AggregationProtocol | None = None,
    transforms: Sequence[MessageTransform] = (),
    privacy: ClientPrivacy | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
    quorum: int = 1,
    round_timeout_s: float = 600.0,
    start_timeout_s: float = 600.0,
    attempts: int = 3,
    poll_s: float = 0.5,
    test_fn: Callable[[], Data] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    evaluate_every: int = 10,
    checkpoint_every: int = 20,
    title: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Any, Any]:
    """The `ServerApp` and the `ClientApp` of a federated algorithm, for Flower's message API.

    The server runs the loop of `phalanx.federate` over the grid as an engine; a client computes its
    message by the functions that the other engines use. With one seed, and equal hardware and
    numbers of threads, the weights are those of `Local(chunk_size=1)` to the bit.

    Messages are arrays and numbers; nothing is unpickled. A client whose message is malformed or
    not finite is a suspect of the round, its message is never averaged in, and the others are
    weighed anew; a client that is not there is missing. What a client remembers (SCAFFOLD, error
    feedback) stays in its `context.state`, as of the last round of which the server took its
    message; a node whose process ends forgets it, and starts anew.

    A node says which client it is by `partition-id` in its node config, from 0. The number of
    samples, where clients count by it, is the client's own word: give `weighted=False` to the
    algorithm, or a robust rule, where clients are not trusted.

    Args:
        algorithm: what clients compute, and what the server does with it.
        model_fn: makes the model, on the server and on every client; without running statistics.
        data_fn: gives a client's samples by its number; called on that client alone.
        num_clients: of the federation.
        rounds: in all.
        clients_per_round: how many are drawn for each round; all of them by default.
        rule: how the server aggregates.
        aggregation: a protocol by which it learns their mean and no update, such as `SecureSum`,
            which takes a message to every client for each of its phases. Then nobody tells the
            server how many samples it holds.
        transforms: what clients do to their messages before they send them.
        privacy: budget, norm and noise of client-level differential privacy; none by default.
        loss: mean loss of a batch from the model's output and the targets.
        seed: of weights, who takes part, and minibatches; known to all.
        quorum: usable messages that a round needs.
        round_timeout_s: after which clients of a round that have not answered are late.
        start_timeout_s: how long the first round waits for all clients, before a quorum will do.
        attempts: how often those that are missing are asked, where there is no quorum.
        poll_s: time between looks for replies.
        test_fn: gives the data that the server evaluates on; none by default.
        metrics: what is measured beside loss and accuracy; see `phalanx.train`.
        out: the server's folder for metrics, checkpoints and weights.
        resume: go on with the run in `out`, where clients remember nothing.
        evaluate_every: rounds between evaluations.
        checkpoint_every: rounds between checkpoints.
        title: what reports call the run.
        callbacks: of the server; `on_end` is given the run.

    Raises:
        ValueError: if arguments do not fit.
        ImportError: if Flower is not installed.

    In the server's main function:

    Raises:
        WorkerError: if no quorum connects in time.
        TooManyByzantineError: if there is no quorum in a round, or more clients of a round fail
            than the rule survives.
    """
    plan = FederationPlan(**locals())
    return server_app(plan), client_app(plan)
