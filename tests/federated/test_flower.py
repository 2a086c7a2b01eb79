"""Federations on Flower, in one process: the weights of the engines, and nodes that fail or lie."""

import time

import pytest
import torch
from torch import nn

from federated.federations import ALGORITHMS, ONE_BY_ONE, federation, linear, run, weights
from phalanx.aggregation import CoordinateMedian, Krum
from phalanx.compression import ErrorFeedback, TopK
from phalanx.errors import TooManyByzantineError, WireError, WorkerError
from phalanx.federated import FedAvg, Scaffold
from phalanx.stragglers import DelayModel
from phalanx.training import Callback, Local
from phalanx.transforms import Compressed

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'phalanx[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from phalanx.federated.flower import (
    InProcessGrid,
    as_flower,
    delayed,
    disconnected,
    nothing,
    run_in_process,
)
from phalanx.federated.flower.records import array_record, tensors_of


class Keep(Callback):
    """Keeps the run."""

    def on_end(self, run):
        self.run = run


def on_flower(algorithm, clients=None, model=linear, rounds=3, grid=None, callbacks=(), **options):
    """A run over the in-process grid."""
    clients = federation() if clients is None else clients
    kept = Keep()
    waits = {"round_timeout_s": 0.3, "start_timeout_s": 0.3, "poll_s": 0.02}
    apps = as_flower(
        algorithm,
        model,
        lambda client: clients[client],
        num_clients=len(clients),
        rounds=rounds,
        callbacks=[kept, *callbacks],
        **{**waits, **options},
    )
    run_in_process(*apps, len(clients), **(grid or {}))
    return kept.run


def only(client, fault, steps=None):
    """A fault of one client, in some rounds or all of them."""
    return lambda who, step: (
        fault if who == client and step >= 0 and (steps is None or step in steps) else None
    )


def test_the_bits_of_one_process(subtests):
    """Every algorithm, with clients that take turns and remember."""
    for algorithm in ALGORITHMS:
        with subtests.test(repr(algorithm)):
            common = {"clients_per_round": 2, "rounds": 4}
            here = run(algorithm, engine=ONE_BY_ONE, **common)
            there = on_flower(algorithm, **common)
            assert weights(here).equal(weights(there))
            for one, other in zip(here.rounds, there.rounds, strict=True):
                for name in ("clients", "loss", "message_bytes", "broadcast_bytes"):
                    assert one[name] == other[name]


def test_the_bits_with_compressors_and_rules(subtests):
    for options in (
        {"transforms": [Compressed(ErrorFeedback(TopK(0.2)))]},
        {"rule": CoordinateMedian(1)},
    ):
        with subtests.test(repr(options)):
            here = run(FedAvg(), engine=ONE_BY_ONE, **options)
            assert weights(here).equal(weights(on_flower(FedAvg(), **options)))


class Absent(DelayModel):
    """Client 1 is away in round 1."""

    def at(self, step, num_workers, seed):
        away = torch.zeros(num_workers, dtype=torch.float64)
        if step == 1:
            away[1] = torch.inf
        return away

    def draw(self, shape, generator):
        raise NotImplementedError


def test_who_is_missing_is_weighed_out_and_forgets_the_round(subtests):
    """As on a virtual clock, to the bit; what SCAFFOLD and error feedback remember, too."""
    compressed = {"transforms": [Compressed(ErrorFeedback(TopK(0.2)))]}
    for algorithm, options in ((FedAvg(), {}), (Scaffold(), {}), (FedAvg(), compressed)):
        for fault, reason in ((nothing, "late"), (disconnected, "dead")):
            with subtests.test(f"{algorithm} {options} {reason}"):
                away = Local(chunk_size=1, delays=Absent())
                here = run(algorithm, rounds=4, engine=away, **options)
                grid = {"faults": only(1, fault, [1])}
                there = on_flower(algorithm, rounds=4, grid=grid, **options)
                assert there.rounds[1]["missing"] == {"1": reason}
                assert weights(here).equal(weights(there))


def replaced(**records):
    """A fault: records of the reply, made anew or left out (None)."""

    def fault(reply):
        content = reply.content
        for name, make in records.items():
            if make is None:
                del content[name]
            else:
                content[name] = make(content[name])
        return reply

    return fault


def raw(shape, dtype="float32", data=b"", stype="phalanx.raw"):
    return lambda record: ArrayRecord({"message": Array(dtype, shape, stype, data)})


def scaled(factor):
    return lambda record: array_record({"message": tensors_of(record)["message"] * factor})


GARBAGE = {
    "no arrays": replaced(arrays=None),
    "no metrics": replaced(metrics=None),
    "another record": replaced(arrays=lambda record: MetricRecord({"a": 1})),
    "wrong name": replaced(arrays=lambda record: ArrayRecord({"weight": record["message"]})),
    "two arrays": replaced(
        arrays=lambda r: ArrayRecord({"message": r["message"], "b": r["message"]})
    ),
    "wrong width": replaced(arrays=raw((3,), data=bytes(12))),
    "wrong dtype": replaced(arrays=raw((15,), "float64", bytes(120))),
    "no dtype": replaced(arrays=raw((15,), "object", bytes(60))),
    "not so long": replaced(arrays=raw((15,), data=bytes(8))),
    "a huge shape": replaced(arrays=raw((2**40, 2**40), data=bytes(60))),
    "a negative shape": replaced(arrays=raw((-15,), data=bytes(60))),
    "a pickle": replaced(arrays=raw((15,), stype="pickle", data=b"cos\nsystem\n")),
    "NaN": replaced(arrays=scaled(torch.nan)),
    "infinite": replaced(arrays=scaled(torch.inf)),
    "another round": replaced(metrics=lambda record: MetricRecord({"step": 7, "loss": 1.0})),
    "no loss": replaced(metrics=lambda record: MetricRecord({"step": 1})),
    "an excuse": lambda reply: (
        reply.content.__setitem__("missing", ConfigRecord({"reason": "holiday"})) or reply
    ),
}


def test_garbage_marks_its_sender_and_ends_no_run(subtests):
    """The others are weighed anew: as if the sender were away."""
    clients = federation((6, 5, 12, 7))
    away = on_flower(FedAvg(), clients, grid={"faults": only(1, nothing, [1])})
    for name, fault in GARBAGE.items():
        with subtests.test(name):
            found = on_flower(FedAvg(), clients, grid={"faults": only(1, fault, [1])})
            assert found.done == 3
            assert found.rounds[1]["suspects"] == [1]
            assert [entry["suspects"] for entry in (found.rounds[0], found.rounds[2])] == [[], []]
            assert weights(found).equal(weights(away))


def test_a_reply_that_cannot_be_read_takes_no_other_with_it():
    class Unreadable(InProcessGrid):
        def pull_messages(self, message_ids):
            found = super().pull_messages(message_ids)
            if any(one.metadata.src_node_id == 3 and one.metadata.group_id == "1" for one in found):
                raise ValueError("no such object")
            return found

    clients, kept = federation((5, 5, 5)), Keep()
    server, client = as_flower(
        FedAvg(), linear, lambda one: clients[one], num_clients=3, rounds=3, callbacks=[kept]
    )
    run_in_process(server, client, 3, grid_class=Unreadable)
    assert [entry["suspects"] for entry in kept.run.rounds] == [[], [1], []]


def test_large_lies_are_the_business_of_the_rule():
    clients = federation((8,) * 6)
    lies = {"faults": only(2, replaced(arrays=scaled(-1e30)))}
    assert weights(on_flower(FedAvg(), clients, rule=Krum(1), grid=lies)).norm() < 10


class Armed(Callback):
    """Says once that a round is done."""

    def __init__(self):
        self.armed = False

    def on_round(self, run, entry):
        self.armed = entry["step"] == 0


def test_an_exception_of_a_client_is_told_and_ends_no_run():
    armed = Armed()

    def loss(outputs, targets):
        if armed.armed:
            armed.armed = False
            raise RuntimeError("out of\nluck")
        return nn.functional.cross_entropy(outputs, targets)

    found = on_flower(FedAvg(), federation((5, 5, 5)), loss=loss, callbacks=[armed])
    missing = [entry["missing"] for entry in found.rounds]
    assert missing == [{}, {"0": "failed: luck"}, {}]


def test_a_round_is_asked_again_until_there_is_a_quorum():
    calls = []

    def once(client, step):
        calls.append((client, step))
        return nothing if client == 1 and calls.count((1, 1)) == 1 and step == 1 else None

    clients = federation((5, 5))
    found = on_flower(Scaffold(), clients, quorum=2, grid={"faults": once})
    assert calls.count((1, 1)) == 2
    assert calls.count((0, 1)) == 1
    assert weights(found).equal(weights(on_flower(Scaffold(), clients)))


def test_a_round_never_waits_for_ever():
    began = time.monotonic()
    with pytest.raises(TooManyByzantineError, match=r"quorum must answer: 3 of the 4.*late"):
        on_flower(
            FedAvg(),
            quorum=3,
            attempts=2,
            grid={"faults": lambda client, step: nothing if client > 1 and step == 1 else None},
        )
    assert time.monotonic() - began < 10


def test_slow_replies_are_late_and_never_taken_later():
    slow = {"faults": only(0, delayed(0.5), [0])}
    found = on_flower(FedAvg(), grid=slow)
    assert [entry["missing"] for entry in found.rounds] == [{"0": "late"}, {}, {}]
    quick = {"faults": only(0, delayed(0.1), [0])}
    assert weights(on_flower(FedAvg(), grid=quick)).equal(weights(on_flower(FedAvg())))


def test_nodes_leave_and_come_back():
    """Client 3 is away in the beginning, and client 0 in the rounds 1 and 2."""
    grid = {"absent": lambda step: {-1: [3], 0: [0], 1: [0]}.get(step, [])}
    found = on_flower(FedAvg(), rounds=6, grid=grid)
    missing = [entry["missing"] for entry in found.rounds]
    assert missing[0]["3"] == "dead"
    assert {"0": "dead"} in missing
    assert missing[-1] == {}


def test_who_takes_another_clients_place_is_refused(subtests):
    """A node that says that it is client 0, or that it holds no samples, takes no part."""
    for told in ({"client": 0, "num_samples": 9}, {"client": 2, "num_samples": 0}):
        with subtests.test(repr(told)):
            lie = replaced(metrics=lambda record, told=told: MetricRecord(told))
            faults = {"faults": lambda who, step: lie if who == 2 and step < 0 else None}  # noqa: B023
            found = on_flower(FedAvg(), federation((5, 5, 5)), grid=faults)
            assert all(entry["missing"] == {"2": "dead"} for entry in found.rounds)


def test_what_does_not_fit_on_clients_is_told_by_the_server():
    with pytest.raises(WorkerError, match=r"quorum must be connected.*model, loss and dataset"):
        on_flower(FedAvg(), model=lambda: linear(dim=9))


def test_records_hold_every_dtype(subtests):
    for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64):
        for shape in ((), (0,), (2, 3)):
            with subtests.test(f"{dtype} {shape}"):
                tensor = torch.ones(shape, dtype=dtype)
                (found,) = tensors_of(array_record({"a": tensor})).values()
                assert found.dtype == dtype
                assert found.equal(tensor)
    with pytest.raises(WireError):
        tensors_of(RecordDict())


def test_what_does_not_fit_is_refused_before_a_process_starts(subtests):
    for message, options in {
        "clients_per_round must be at most the 4 clients": {"clients_per_round": 5},
        "quorum must be at most the 2 clients": {"clients_per_round": 2, "quorum": 3},
        "round_timeout_s must be": {"round_timeout_s": 0.0},
        "model_fn must be a function": {"model": linear()},
        "rule must be a Aggregator": {"rule": "mean"},
        "without running statistics": {
            "model": lambda: nn.Sequential(linear(4, 8), nn.BatchNorm1d(8), linear(8, 3))
        },
    }.items():
        with subtests.test(message), pytest.raises(ValueError, match=message):
            on_flower(FedAvg(), **options)


def test_a_run_resumes_to_the_same_bits_unless_clients_remember(tmp_path):
    whole = on_flower(FedAvg(), rounds=6)
    common = {"out": tmp_path / "run", "checkpoint_every": 1}
    on_flower(FedAvg(), rounds=3, **common)
    rest = on_flower(FedAvg(), rounds=6, resume=True, **common)
    assert weights(rest).equal(weights(whole))
    common = {"out": tmp_path / "other", "checkpoint_every": 1}
    on_flower(Scaffold(), **common)
    with pytest.raises(ValueError, match="resume must be False where clients remember"):
        on_flower(Scaffold(), resume=True, **common)
