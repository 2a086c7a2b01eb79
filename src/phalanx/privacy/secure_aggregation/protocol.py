"""A round of the protocol, all parties in one process."""

from typing import NamedTuple

from torch import Tensor

from phalanx.aggregation import Aggregate, Aggregator, Mean
from phalanx.privacy.secure_aggregation.dealer import deal
from phalanx.privacy.secure_aggregation.entropy import Entropy, from_system
from phalanx.privacy.secure_aggregation.messages import Message
from phalanx.privacy.secure_aggregation.model_server import ModelServerView
from phalanx.privacy.secure_aggregation.views import learnt
from phalanx.privacy.secure_aggregation.worker_server import State, WorkerServerView


class Transcript(NamedTuple):
    """A round as both servers saw it, and what went between them.

    Attributes:
        model_server: all that it knows, the aggregate included.
        worker_server: all that it knows, distances and the verdict included.
        state: what the rule remembers.
        between: the messages of the dealer and the servers, in their order.
    """

    model_server: ModelServerView
    worker_server: WorkerServerView
    state: State
    between: tuple[Message, ...]

    def aggregate(self) -> Aggregate:
        """What a rule in the clear answers: the model server's value, the other's verdict.

        No server of a real deployment has both.
        """
        value: Tensor = learnt(self.model_server.aggregate)
        return learnt(self.worker_server.verdict)._replace(value=value)


def run_round(
    model_server: ModelServerView,
    worker_server: WorkerServerView,
    rule: Aggregator,
    state: State,
    entropy: Entropy = from_system,
) -> Transcript:
    """Everything after the uploads, which the views hold already.

    Args:
        model_server: what it received.
        worker_server: what it received.
        rule: one that needs distances only; `Mean` is a plain sum, without dealer or distances.
        state: what the rule remembers.
        entropy: where secrets come from.

    Raises:
        TooManyByzantineError: if more workers are marked or out of range than the rule survives.
        DecodeError: if too few workers are in the round for the rule.
    """
    roll = model_server.roll()
    worker_server, common = worker_server.call(roll)
    if isinstance(rule, Mean):
        worker_server, total = worker_server.add_up()
        model_server = model_server.open_sum(common, total)
        return Transcript(model_server, worker_server, state, (roll, common, total))
    one, other = deal(model_server.setup, model_server.round, entropy)
    model_server, mine = model_server.mask(common, one)
    worker_server, theirs = worker_server.mask(mine, other)
    model_server, distances = model_server.measure(mine, theirs)
    worker_server, weighted, state = worker_server.weigh(distances, rule, state, entropy)
    between = (one, other, roll, common, mine, theirs, distances, weighted)
    return Transcript(model_server.open(weighted), worker_server, state, between)
