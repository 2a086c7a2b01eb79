"""Replies of hostile workers: whatever they are, they mark their sender and stop nothing."""

import math
from typing import NamedTuple

import pytest
import torch

from phalanx.aggregation import Mean
from phalanx.coding import Uncoded
from phalanx.compression import TopK
from phalanx.training.inbox import Inbox
from phalanx.training.worker import Sent
from phalanx.transforms import Compressed
from training.drifting import a_job

JOBS = {
    "plain": a_job(Uncoded(3, Mean())),
    "compressed": a_job(Uncoded(3, Mean()), transforms=[Compressed(TopK())]),
}
each_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


class OddLength(tuple):
    """A tuple that raises whenever it is asked anything."""

    __slots__ = ()

    def __len__(self):
        raise RuntimeError("no length")

    def __iter__(self):
        raise RuntimeError("no parts")

    def __getitem__(self, place):
        raise RuntimeError("no part")


class Endless:
    """What says that it is longer than anything."""

    def __len__(self):
        return -1

    def __getattr__(self, name):
        raise RuntimeError(name)


class Hostile(torch.Tensor):
    """A tensor that raises in every operation."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        raise RuntimeError("no operation")


class Number(float):
    """A number that is none."""

    def __float__(self):
        raise RuntimeError("no number")


class Other(NamedTuple):
    message: object
    loss: object
    state: object
    more: object


def an_inbox(job):
    return Inbox(job.empty_table(torch.device("cpu")), job.chain.decode)


def worthless(dim):
    """Values that hold no message, by name."""
    right = torch.zeros(dim)
    return {
        "None": None,
        "str": "message",
        "bytes": b"\x00" * dim,
        "int": 3,
        "float": math.nan,
        "list": [0.0] * dim,
        "dictionary": {"message": right},
        "class": torch.Tensor,
        "no tuple": (),
        "a tuple of one": (right,),
        "nested tuples": (((right, 0.0), 0.0), 0.0),
        "Sent of None": Sent(None, 0.0),
        "odd length": OddLength((None, 0.0)),
        "odd length of one": OddLength((right,)),
        "endless": Endless(),
        "Sent of endless": Sent(Endless(), Endless()),
        "subclass": Sent(right.as_subclass(Hostile), 0.0),
        "scalar": Sent(torch.tensor(0.0), 0.0),
        "empty": Sent(torch.empty(0), 0.0),
        "matrix": Sent(right.unsqueeze(0), 0.0),
        "too short": Sent(right[1:], 0.0),
        "too long": Sent(torch.zeros(dim + 1), 0.0),
        "huge": Sent(torch.zeros(1).expand(2**40), 0.0),
        "huge of many axes": Sent(torch.zeros(1).expand(*[2] * 40), 0.0),
        "meta": Sent(torch.zeros(dim, device="meta"), 0.0),
        "sparse": Sent(right.to_sparse(), 0.0),
        **{
            f"{dtype}": Sent(right.to(dtype), 0.0)
            for dtype in (torch.float64, torch.float16, torch.int32, torch.bool, torch.complex64)
        },
        "bytes of nothing": Sent(torch.zeros(0, dtype=torch.uint8), 0.0),
        "bytes of zeros": Sent(torch.zeros(4096, dtype=torch.uint8), 0.0),
        "bytes of ones": Sent(torch.full((4096,), 255, dtype=torch.uint8), 0.0),
    }


@each_job
def test_what_is_no_message_marks_its_sender(job, subtests):
    for name, value in worthless(job.layout.dim).items():
        with subtests.test(name):
            inbox = an_inbox(job)
            inbox.take(1, value)
            assert inbox.arrived.tolist() == [False] * 3
            assert inbox.missing[1] in ("wrong type", "wrong shape", "malformed")
            assert not inbox.usable(1)
            assert inbox.losses.isnan().all()
            assert inbox.message_bytes == 0


def test_what_is_no_loss_is_unknown_and_the_message_is_taken(subtests):
    job = JOBS["plain"]
    message = torch.arange(float(job.layout.dim))
    losses = {
        "None": None,
        "str": "0",
        "NaN": math.nan,
        "int": 10**400,
        "tensor": torch.zeros(3),
        "number that is none": Number(1.0),
        "endless": Endless(),
    }
    for name, loss in losses.items():
        for value in (Sent(message, loss), (message, loss), Other(message, loss, None, 1)):
            with subtests.test(name, kind=type(value).__name__):
                inbox = an_inbox(job)
                inbox.take(2, value)
                assert inbox.arrived.tolist() == [False, False, True]
                assert inbox.messages[2].equal(message)
                assert inbox.losses[2].isnan()
                assert inbox.usable(2)
    with subtests.test("infinity is a loss"):
        inbox = an_inbox(job)
        inbox.take(0, Sent(message, math.inf))
        assert inbox.losses[0].isinf()


def test_messages_that_are_not_finite_arrive_and_are_not_usable(subtests):
    job = JOBS["plain"]
    for bad in (math.nan, math.inf, -math.inf):
        with subtests.test(f"{bad}"):
            inbox = an_inbox(job)
            message = torch.zeros(job.layout.dim)
            message[3] = bad
            inbox.take(0, Sent(message, 0.0))
            assert inbox.arrived[0]
            assert not inbox.usable(0)


def test_a_message_that_wants_a_gradient_leaves_the_table_without():
    job = JOBS["plain"]
    inbox = an_inbox(job)
    inbox.take(0, Sent(torch.ones(job.layout.dim, requires_grad=True), 0.0))
    inbox.take(1, Sent(torch.ones(3, job.layout.dim, requires_grad=True)[1], 0.0))
    assert inbox.arrived.tolist() == [True, True, False]
    assert not inbox.messages.requires_grad


def test_an_honest_message_after_a_worthless_one_counts():
    job = JOBS["plain"]
    inbox = an_inbox(job)
    inbox.take(1, None)
    inbox.take(1, Sent(torch.ones(job.layout.dim), 0.5))
    assert inbox.missing == {}
    assert inbox.losses[1] == 0.5
