"""Compressed messages in the loop: the bits of every engine, what is remembered, what is forged."""

import os
import pickle
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import phalanx
from compression.cases import CASES
from phalanx.aggregation import CoordinateMedian, Krum, Mean
from phalanx.attacks import (
    Attack,
    FixedWorkers,
    GaussianNoise,
    InnerProductManipulation,
    LabelFlip,
    Mixed,
    NotFinite,
    RandomWorkers,
    ReverseGradient,
    Silence,
    SleeperWorkers,
    StaleGradient,
    WrongShape,
)
from phalanx.coding import Detox, DracoCyclic, DracoRepetition, ErasureHead, Uncoded
from phalanx.compression import (
    QSGD,
    ErrorFeedback,
    HalfPrecision,
    PowerSGD,
    RandomK,
    TopK,
    UniformQuantization,
)
from phalanx.computations import Broadcast
from phalanx.errors import TooManyByzantineError
from phalanx.randomness import generator
from phalanx.training import Local, Ray, Site
from phalanx.training.attack_simulation import roles
from phalanx.training.exchange import read_states
from phalanx.training.inbox import Inbox
from phalanx.training.worker import ReadState, RoundTask
from phalanx.transforms import Compressed, WorkerMomentum
from training import drifting
from training.drifting import (
    a_model,
    drifted,
    flat,
    honest,
    local_rounds,
    rounds,
    some_data,
    staged,
    workers,
)

SPARSE = ErrorFeedback(TopK(ratio=0.2))
EVERYTHING = Mixed(
    [
        StaleGradient(2),
        LabelFlip(),
        InnerProductManipulation(),
        GaussianNoise(),
        Silence(),
        WrongShape(),
        NotFinite(),
    ]
)


def a_job(code, compressor=SPARSE, before=(), **stages):
    return drifting.a_job(code, transforms=[*before, Compressed(compressor)], **stages)


def trained(**options):
    defaults = {"steps": 8, "num_workers": 7, "batch_size": 70, "evaluate_every": 100}
    options = {**defaults, "compressor": SPARSE, **options}
    before, compressor = options.pop("before", ()), options.pop("compressor")
    options["transforms"] = [*before, Compressed(compressor)] if compressor else list(before)
    return phalanx.train(a_model(), some_data(), **options)


def assert_same_memory(ours, theirs):
    """That all workers remember the same bits."""
    assert ours.keys() == theirs.keys()
    for worker, state in ours.items():
        assert state.keys() == theirs[worker].keys()
        for name, parts in state.items():
            assert all(a.equal(b) for a, b in zip(parts, theirs[worker][name], strict=True))


@pytest.mark.parametrize("compressor", CASES, ids=repr)
def test_what_arrives_is_each_tensor_encoded_and_decoded_alone(compressor):
    job = a_job(Uncoded(3), compressor)
    chain, source = job.chain, torch.Generator().manual_seed(0)
    states, wanted = {}, [compressor.init(value) for value in job.model.parameters()]
    for step in range(3):
        message = torch.randn(chain.layout.dim, generator=source)
        _, data, states = chain.update(message, states, step, worker=1)
        expected, num_bytes = [], 0
        for place, (name, value) in enumerate(job.model.named_parameters()):
            who = "shared" if compressor.needs_shared_randomness else 1
            part = message.split([one.numel() for one in job.model.parameters()])[place]
            draws = generator(3, "compression", step, name, who)
            one, wanted[place] = compressor.update(part.view_as(value), wanted[place], draws)
            expected.append(compressor.decode(one).flatten())
            num_bytes += one.num_bytes + (0 if compressor.fixed_size else 8)
        assert chain.decode(data).equal(torch.cat(expected))
        assert data.nbytes == num_bytes
    assert bool(states) == any(map(len, wanted))


@given(data=st.binary(max_size=80), compressor=st.sampled_from(CASES))
def test_bytes_of_anybody_mark_their_sender_and_stop_nothing(data, compressor):
    chain = a_job(Uncoded(2), compressor).chain
    inbox = Inbox(torch.zeros(2, chain.layout.dim), chain.decode)
    inbox.put(0, torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else None)
    assert inbox.missing == {0: "malformed" if data else "wrong type"}
    inbox.put(1, torch.zeros(chain.layout.dim))
    assert inbox.missing[1] == "malformed"


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), compressor=st.sampled_from(CASES))
def test_a_flipped_bit_is_noticed_or_decodes_to_finite_numbers(place, bit, compressor):
    chain = a_job(Uncoded(1), compressor).chain
    numbers = torch.randn(chain.layout.dim, generator=torch.Generator().manual_seed(place))
    _, data, _ = chain.update(numbers, {}, 0, 0)
    data[place % len(data)] ^= 1 << bit
    inbox = Inbox(torch.zeros(1, chain.layout.dim), chain.decode)
    inbox.put(0, data)
    assert inbox.missing == {0: "malformed"} or inbox.messages.isfinite().all()


def test_a_compressor_that_loses_nothing_changes_no_bit():
    for options in ({}, {"before": [WorkerMomentum()]}, {"code": ErasureHead(6, copies=2)}):
        options |= {"batch_size": 60 if "code" in options else 70, "steps": 3}
        kept = trained(compressor=TopK(ratio=1.0), **options)
        assert flat(kept.model).equal(flat(trained(compressor=None, **options).model))


@pytest.mark.parametrize("code", [Uncoded(5), ErasureHead(6, copies=2)], ids=["rule", "code"])
@pytest.mark.parametrize("inner", [TopK(ratio=0.2), PowerSGD(rank=1, min_compression=1.0)])
def test_nothing_is_lost_but_for_later(code, inner):
    """What arrived and what is remembered add up to all that was computed."""
    job = a_job(code, ErrorFeedback(inner))
    plain = sum(one.messages for one in local_rounds(staged(job, transforms=()), 5))
    *_, last = found = local_rounds(job, 5)
    left = []
    for lengths, *parts in last.state("transforms.0").values():
        ends = lengths.cumsum(0) - lengths
        left.append(torch.cat([parts[first].flatten() for first in ends]))
    left = torch.stack(left)
    assert left.abs().sum() > 0
    torch.testing.assert_close(sum(one.messages for one in found) + left, plain)


def test_liars_under_a_vote_change_no_bit_of_a_compressed_run():
    code = DracoRepetition(num_workers=7, num_byzantine=3)
    for compressor in (
        HalfPrecision(),
        TopK(ratio=0.3),
        RandomK(ratio=0.5),
        UniformQuantization(bits=4),
    ):
        options = {"code": code, "compressor": compressor, "steps": 2}
        drill = {"attack": Mixed([ReverseGradient(), WrongShape()]), "byzantine": RandomWorkers(2)}
        clean, lied = trained(**options), trained(**options, **drill)
        assert flat(lied.model).equal(flat(clean.model))
        assert all(set(one["byzantine"]) == set(one["suspects"]) for one in lied.rounds)


@pytest.mark.parametrize(
    ("code", "compressor", "why"),
    [
        (DracoCyclic(5, 1), HalfPrecision(), "compressor must be None under DracoCyclic"),
        (DracoRepetition(3, 1), SPARSE, "remembers rounds that a replica may have missed"),
        (DracoRepetition(3, 1), QSGD(), "draws other numbers on every worker"),
        (DracoRepetition(3, 1), PowerSGD(min_compression=1.0), "remembers rounds"),
        (Detox(6, 1), RandomK(shared=False), "compares replicas, got RandomK"),
    ],
    ids=["cyclic", "memory", "random", "power", "detox"],
)
def test_what_would_make_honest_replicas_differ_is_refused(code, compressor, why):
    with pytest.raises(ValueError, match=why):
        trained(code=code, compressor=compressor, batch_size=30)


def test_liars_of_every_kind_are_marked_and_the_run_goes_on(tmp_path):
    attack = Mixed([WrongShape(), NotFinite(), WrongShape(-1)])
    drill = {"attack": attack, "byzantine": FixedWorkers([1, 2, 4])}
    run = trained(rule=Krum(3), num_workers=9, batch_size=90, **drill, out=tmp_path / "run")
    for entry in run.rounds:
        assert entry["missing"] == dict.fromkeys("124", "malformed")
        assert {1, 2, 4} <= set(entry["suspects"])
    assert repr(SPARSE) in run.result["transforms"]
    assert any("Sparsified SGD" in method for method in run.result["methods"])


def test_who_computes_no_number_sends_nothing_and_remembers_what_was():
    job = a_job(Uncoded(3))
    first = local_rounds(job, 1)[0]
    inputs, targets = job.dataset.tensors
    broken = replace(job, dataset=TensorDataset(inputs * torch.nan, targets))
    (found,) = local_rounds(broken, 1, first, first=1)
    assert found.missing == dict.fromkeys(range(3), "not finite")
    assert found.message_bytes == 0
    assert_same_memory(found.states, first.states)


def test_bytes_are_counted_as_they_travel():
    dim = len(flat(a_model()))
    assert trained(compressor=None, steps=1).rounds[0]["message_bytes"] == 7 * 4 * dim
    run = trained(compressor=HalfPrecision(), steps=3)
    assert [entry["message_bytes"] for entry in run.rounds] == [7 * 2 * dim] * 3
    assert run.result["message_bytes"] == 3 * 7 * 2 * dim
    drill = {"attack": Silence(), "byzantine": FixedWorkers([0, 3]), "rule": Mean()}
    silent = trained(compressor=HalfPrecision(), steps=1, **drill)
    assert silent.rounds[0]["message_bytes"] == 5 * 2 * dim


@pytest.mark.parametrize("momentum", [None, WorkerMomentum()], ids=["plain", "momentum"])
def test_workers_by_themselves_send_what_one_process_computes_for_them(momentum):
    attack = Mixed([ReverseGradient(), LabelFlip(), Silence(), WrongShape(), StaleGradient(1)])
    before = [momentum] if momentum else []
    job = a_job(Uncoded(7), before=before, attack=attack, byzantine=RandomWorkers(5))
    packed = pickle.loads(pickle.dumps(workers(job).packed()))
    here = local_rounds(job, 4)
    past = []
    for worker in range(7):
        (process,) = packed.make({worker: {}}, Site("cpu", 1))
        for step in range(4):
            past = [Broadcast(drifted(job, one)) for one in range(max(0, step - 1), step)]
            task = RoundTask(step, Broadcast(drifted(job, step)), roles(job, step), tuple(past))
            if step == 2:  # it dies, and is told what it knew; a task that it drops changes nothing
                known = ReadState(2).run(process).value
                (process,) = packed.make({worker: known}, Site("cpu", 1))
                assert task.run(process, lambda: True).missing == "late"
                assert_same_memory({0: process.recall(2)}, {0: known})
            reply = task.run(process)
            inbox = Inbox(torch.zeros_like(here[step].messages), job.chain.decode)
            if reply.missing is not None:
                assert reply.missing == here[step].missing[worker]
                continue
            inbox.take(worker, reply.value)
            assert inbox.missing.get(worker) == here[step].missing.get(worker)
            if worker not in here[step].missing:
                assert inbox.messages[worker].equal(here[step].messages[worker])
        for number in (3, 4):  # before the last round, and after it
            expected = here[number - 1].states[worker]
            assert_same_memory({0: process.recall(number)}, {0: expected})


def test_a_run_killed_at_any_checkpoint_ends_with_the_same_bits(tmp_path):
    options = {"rule": CoordinateMedian(2), "attack": EVERYTHING, "byzantine": RandomWorkers(2)}
    options |= {"steps": 4, "before": [WorkerMomentum()]}
    whole = flat(trained(**options).model)
    for last in (0, 2):  # checkpoints last and last + 1 are kept; the newer one is torn off
        out = tmp_path / str(last)
        trained(**{**options, "steps": last + 1}, out=out, checkpoint_every=1)
        (out / "checkpoints" / f"step-{last + 1:09d}.pt").unlink()
        assert flat(trained(**options, out=out, resume=True).model).equal(whole)


class LastBits(Attack):
    """Sends a message that is well-formed, and not the truth."""

    def forge(self, own, honest, num_byzantine, generator=None):
        return own + 1


def test_the_server_decodes_what_a_forger_encodes():
    job = a_job(Uncoded(3), HalfPrecision(), attack=LastBits(), byzantine=FixedWorkers([1]))
    (found,) = local_rounds(job, 1)
    (truth,) = local_rounds(staged(honest(job), transforms=()), 1)
    assert found.messages[1].equal((truth.messages[1] + 1).half().float())


@pytest.mark.slow
def test_processes_send_the_bits_of_one_process_and_take_up_a_run(cluster):
    drill = {"attack": EVERYTHING, "byzantine": RandomWorkers(4)}
    job = a_job(Uncoded(5), before=[WorkerMomentum()], **drill)
    here = local_rounds(job, 5)
    with Ray().start(workers(job)) as session:
        there = list(rounds(session, job, 3))
        before = read_states(session, job, 2)
    assert_same_memory(before, here[1].states)
    assert_same_memory(there[2].states, here[2].states)
    with Ray().start(workers(job, there[2])) as session:  # new processes
        there += rounds(session, job, 2, there[2], first=3)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.missing == ours.missing
        assert theirs.messages[theirs.arrived].equal(ours.messages[ours.arrived])
        assert theirs.message_bytes == ours.message_bytes


@pytest.mark.slow
def test_runs_on_processes_resume_and_end_with_the_weights_of_one_process(cluster, tmp_path):
    drill = {"attack": EVERYTHING, "byzantine": RandomWorkers(1), "rule": CoordinateMedian(1)}
    drill |= {"compressor": QSGD(), "num_workers": 3, "batch_size": 48}
    here = trained(**drill, engine=Local(chunk_size=1), steps=4)
    options = {**drill, "engine": Ray(), "out": tmp_path / "run"}
    trained(**options, steps=2)
    there = trained(**options, steps=4, resume=True)
    assert flat(here.model).equal(flat(there.model))
    shutil.rmtree(tmp_path / "run")
    # A run that too many liars stop is written down as it was before the round that they stopped.
    options["compressor"] = drill["compressor"] = SPARSE
    sleepers = {"attack": NotFinite(), "byzantine": SleeperWorkers(list(range(3)), from_step=2)}
    with pytest.raises(TooManyByzantineError):
        trained(**{**options, **sleepers}, steps=4)
    honest = {"attack": None, "byzantine": None}
    there = trained(**{**options, **honest}, steps=4, resume=True, changes=["attack", "byzantine"])
    here = trained(**{**drill, **honest}, engine=Local(chunk_size=1), steps=4)
    assert flat(here.model).equal(flat(there.model))


@pytest.mark.slow
def test_a_worker_that_is_started_anew_begins_without_a_memory(cluster):
    job = a_job(Uncoded(3), before=[WorkerMomentum()])
    with Ray(deadline_s=20.0).start(workers(job)) as session:
        *_, second = rounds(session, job, 2)
        os.kill(session.pids[1], signal.SIGKILL)
        step = 2
        (found,) = rounds(session, job, 1, second, first=step)
        assert found.missing == {1: "dead"}
        while found.missing:
            assert not found.states.get(1)
            step += 1
            (found,) = rounds(session, job, 1, found, first=step)
        assert found.messages[1].equal(local_rounds(job, 1, first=step)[0].messages[1])
