"""Workers that add up what they are given, and what every engine answers about them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from phalanx.training import Collector, Reply, Task, WorkerFactory


@dataclass
class Adder:
    """A worker that adds up what it is given."""

    id: int
    total: int


@dataclass(frozen=True)
class Adders(WorkerFactory):
    """Workers that begin with a hundred times their id."""

    number: int = 3

    @property
    def num_workers(self):
        return self.number

    def own(self, worker):
        return 100 * worker

    def make(self, owned, site):
        return [Adder(worker, total) for worker, total in owned.items()]


@dataclass(frozen=True)
class Add(Task):
    """Adds a number; worker 2 has nothing to send in round 1."""

    queued: ClassVar[bool] = True

    values: torch.Tensor

    def run(self, worker, is_over=lambda: False):
        if worker.id == 2 and self.step == 1:
            return Reply(missing="silent")
        worker.total += int(self.values.sum())
        return Reply({"total": worker.total, "parts": (self.values * worker.id,)})


class Kept(Collector):
    """Keeps reasons, too."""

    def __init__(self):
        super().__init__()
        self.reasons = {}

    def refuse(self, worker, reason):
        self.reasons[worker] = reason


EXPECTED = [
    ({0: 6, 1: 106, 2: 206}, {}),
    ({0: 12, 1: 112}, {2: "silent"}),
    ({0: 18, 2: 212}, {}),  # nobody asks worker 1
    ({0: 6, 1: 118, 2: 218}, {}),  # worker 0 was started anew
]


def check_replies(engine):
    """Workers keep what they hold, and reply alike."""
    with engine.start(Adders()) as session:
        for step, (totals, reasons) in enumerate(EXPECTED):
            if step == 3:
                session.restart([0])
            found = Kept()
            asked = [0, 2] if step == 2 else [0, 1, 2]
            replies = session.call(Add(step, torch.arange(4)), asked, collector=found)
            assert {one: value["total"] for one, value in found.values.items()} == totals, step
            for worker, value in found.values.items():
                assert value["parts"][0].equal(worker * torch.arange(4)), step
            assert found.reasons == reasons, step
            assert replies.missing == {}, step
            assert replies.seconds >= 0
