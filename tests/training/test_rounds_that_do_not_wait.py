"""Waiting policies in a run: on the local engine's virtual clock, and with real workers."""

import math
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

import phalanx
from phalanx.aggregation import Mean
from phalanx.attacks import Delay, FixedWorkers, NotFinite, Silence
from phalanx.coding import ErasureHead, FractionalRepetition, Uncoded
from phalanx.computations import Broadcast
from phalanx.errors import DecodeError, TooManyByzantineError
from phalanx.stragglers import (
    AdaptiveDeadline,
    Bursty,
    Deadline,
    FirstOf,
    RecordedTrace,
    ShiftedExponential,
    UntilDecodable,
    WaitFor,
    WaitForAll,
    virtual_clock,
)
from phalanx.training import Job, Local, Ray, Round, TrainingWorkers, exchange

EXACT = FractionalRepetition(num_workers=6, num_stragglers=1)


def a_job(code=EXACT, dataset=None, batch_size=12, seed=3, **stages):
    numbers = torch.Generator().manual_seed(5)
    inputs = torch.randn(240, 6, generator=numbers)
    dataset = dataset or TensorDataset(inputs, torch.randint(3, (240,), generator=numbers))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = torch.nn.Linear(6, 3)
    return Job(model, cross_entropy, dataset, Round(code, **stages), batch_size, seed)


def workers(job):
    return TrainingWorkers(job, {})


def parameters_of(job):
    return torch.cat([value.detach().reshape(-1) for value in job.model.parameters()])


def one_round(engine, job=None, step=0):
    job = job or a_job()
    with engine.start(workers(job)) as session:
        return asked(session, job, step)


def asked(session, job, step, memory=None, excluded=()):
    broadcast = Broadcast(parameters_of(job))
    return exchange(session, job, step, broadcast, memory, excluded=excluded)


def trace(tmp_path, *rounds):
    path = tmp_path / "delays.csv"
    path.write_text("\n".join(",".join(map(str, one)) for one in rounds))
    return RecordedTrace(path)


# The virtual clock.


@pytest.mark.parametrize(
    ("policy", "virtual_s", "late"),
    [
        (None, 9.0, []),
        (WaitForAll(), 9.0, []),
        (WaitFor(2), 2.0, [2, 3, 4, 5]),
        (Deadline(4.5), 4.5, [4, 5]),
        (UntilDecodable(), 5.0, [5]),  # workers 0 and 1, 2 and 3, 4 and 5 hold the same
        (FirstOf([WaitFor(5), UntilDecodable(), Deadline(4.0)]), 4.0, [4, 5]),
    ],
    ids=str,
)
def test_the_round_ends_as_soon_as_the_policy_says_so(tmp_path, policy, virtual_s, late):
    delays = trace(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    collected = one_round(Local(delays=delays, policy=policy))
    assert collected.virtual_s == virtual_s
    assert collected.missing == dict.fromkeys(late, "late")


def test_whoever_is_late_the_exact_code_decodes_the_same_bits(tmp_path):
    job = a_job()
    everybody = one_round(Local(), job)
    assert everybody.virtual_s == 0
    some = one_round(Local(delays=ShiftedExponential(), policy=UntilDecodable()), job)
    assert some.missing
    expected = EXACT.decode(everybody.messages).gradient
    assert EXACT.decode(some.messages, some.arrived).gradient.equal(expected)


def test_with_a_deadline_of_0_all_are_late_and_decoding_says_who_is_missing():
    job = a_job()
    engine = Local(delays=ShiftedExponential(), deadline_s=0.0)
    collected = one_round(engine, job)
    assert collected.missing == dict.fromkeys(range(6), "late")
    assert collected.virtual_s == 0
    with pytest.raises(DecodeError) as caught:
        phalanx.train(job.model, job.dataset, EXACT, engine=engine, steps=1, batch_size=12)
    assert caught.value.workers == list(range(6))
    with pytest.raises(TooManyByzantineError):
        phalanx.train(job.model, job.dataset, rule=Mean(), num_workers=6, engine=engine, steps=1)


def test_the_deadline_bounds_every_policy():
    delays = ShiftedExponential(shift_s=1.0)
    collected = one_round(Local(delays=delays, policy=WaitForAll(), deadline_s=1.0))
    assert collected.virtual_s == 1.0
    assert set(collected.missing.values()) == {"late"}


def test_nobody_waits_for_the_dead(tmp_path):
    delays = trace(tmp_path, [1.0, math.inf, 2.0, 3.0, 4.0, 5.0], [math.inf] * 6)
    engine = Local(delays=delays, policy=WaitForAll())
    collected = one_round(engine)
    assert (collected.virtual_s, collected.missing) == (5.0, {1: "dead"})
    collected = one_round(engine, step=1)
    assert (collected.virtual_s, set(collected.missing.values())) == (0.0, {"dead"})


def test_redundant_work_takes_its_time():
    engine = Local(delays=ShiftedExponential(1.0, 0.0), seconds_per_partition=0.5)
    assert one_round(engine).virtual_s == 2.0
    assert one_round(engine, a_job(Uncoded(6))).virtual_s == 1.5


def test_the_attack_delay_comes_on_top_of_the_clock():
    drill = {"attack": Delay(delay_s=10.0), "byzantine": FixedWorkers([0, 5])}
    delays = ShiftedExponential(1.0, 0.0)
    assert one_round(Local(delays=delays), a_job(**drill)).virtual_s == 11.0
    collected = one_round(Local(delays=delays, policy=UntilDecodable()), a_job(**drill))
    assert (collected.virtual_s, collected.missing) == (1.0, {0: "late", 5: "late"})


@pytest.mark.parametrize("attack", [Silence(), NotFinite()], ids=str)
def test_messages_of_no_use_do_not_end_a_round(tmp_path, attack):
    """Workers 0 and 2 are first, but only 1 and 3 send what can be decoded."""
    delays = trace(tmp_path, [1.0, 6.0, 1.0, 7.0, 1.0, 1.0])
    job = a_job(attack=attack, byzantine=FixedWorkers([0, 2]))
    collected = one_round(Local(delays=delays, policy=UntilDecodable()), job)
    assert collected.virtual_s == 7.0
    assert EXACT.decode(collected.messages, collected.arrived).gradient.isfinite().all()


def test_the_excluded_are_not_waited_for(tmp_path):
    job, delays = a_job(), trace(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0, 99.0])
    with Local(delays=delays, policy=WaitForAll()).start(workers(job)) as session:
        collected = asked(session, job, 0, excluded=[5])
    assert (collected.virtual_s, collected.missing) == (5.0, {5: "excluded"})


def test_delays_follow_from_the_seed_and_the_round():
    for model in (ShiftedExponential(), Bursty()):
        asked = [model.at(step, 5, seed=1) for step in (0, 255, 256, 300)]
        again = [model.at(step, 5, seed=1) for step in (300, 256, 255, 0)][::-1]
        assert all(one.equal(other) for one, other in zip(asked, again, strict=True))
        assert not asked[0].equal(asked[2])
        assert not asked[0].equal(model.at(0, 5, seed=2))


def test_a_trace_is_played_back_round_by_round(tmp_path):
    delays = trace(tmp_path, [1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    rounds = [delays.at(step, 2, seed=0).tolist() for step in (2, 3, 1)]
    assert rounds == [[5.0, 6.0], [1.0, 2.0], [3.0, 4.0]]


def test_the_engine_and_the_virtual_clock_agree():
    job, model, policy = a_job(), Bursty(), AdaptiveDeadline(first_s=5.0)
    delays = torch.stack([model.at(step, 6, job.seed) for step in range(40)])
    expected = virtual_clock(delays, policy)
    collected = None
    with Local(delays=model, policy=policy).start(workers(job)) as session:
        for step in range(40):
            collected = asked(session, job, step, collected and collected.memory)
            assert collected.arrived.equal(expected.arrived[step])
            assert collected.virtual_s == pytest.approx(expected.duration_s[step].item())


def test_a_run_that_resumes_has_the_same_rounds(tmp_path):
    def run(folder, steps, resume=False):
        job = a_job(ErasureHead(num_workers=6, copies=2))
        engine = Local(delays=Bursty(), policy=AdaptiveDeadline(first_s=2.0, quantile=0.7))
        return phalanx.train(
            job.model,
            job.dataset,
            job.round.code,
            engine=engine,
            steps=steps,
            batch_size=12,
            seed=1,
            out=folder,
            resume=resume,
            checkpoint_every=4,
        )

    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 7)
    parts = run(tmp_path / "parts", 12, resume=True)
    facts = ("loss", "virtual_seconds", "missing", "error")
    assert [[one[fact] for fact in facts] for one in parts.rounds] == [
        [one[fact] for fact in facts] for one in whole.rounds
    ]
    assert parts.result["virtual_seconds"] == pytest.approx(whole.result["virtual_seconds"])
    assert any(one["missing"] for one in whole.rounds)


def test_what_is_out_of_range_is_refused():
    for seconds in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="seconds_per_partition must be finite and at least 0"):
            Local(seconds_per_partition=seconds)


# Real workers.


def slowed(folder):
    """A data set from which a process reads slowly as long as there is a file named like its id."""

    class Slowed(Dataset):  # defined here, it travels by value
        def __len__(self):
            return 240

        def __getitem__(self, index):
            told = folder / str(os.getpid())
            time.sleep(float(told.read_text()) if told.exists() else 0.0)
            return torch.full((6,), index / 240), torch.tensor(index % 3)

    return Slowed()


def assert_decodes(job, step, collected):
    """The bits of a round in which nobody is missing."""
    whole = one_round(Local(chunk_size=1), job, step)
    decoded = job.round.code.decode(collected.messages, collected.arrived)
    assert decoded.gradient.equal(job.round.code.decode(whole.messages).gradient)


@pytest.mark.slow
def test_the_late_drop_what_nobody_waits_for(cluster, tmp_path):
    """A task of 32 s is dropped after the partition that is being computed, which takes 8 s."""
    job = a_job(FractionalRepetition(num_workers=4, num_stragglers=3), slowed(tmp_path), 16)
    with Ray(policy=UntilDecodable()).start(workers(job)) as session:
        asked(session, job, 0)
        (tmp_path / str(session.pids[2])).write_text("2.0")
        # A task that is over before the worker begins is dropped at once: till one has been begun.
        late: list[float] = []
        while len(late) < 2 or late[-1] - late[-2] < 4:
            collected = asked(session, job, 1)
            if collected.missing.get(2) == "late":
                late.append(time.monotonic())
            time.sleep(0.2)
        assert late[-1] - late[-2] < 24
        assert_decodes(job, 1, collected)


@pytest.mark.slow
def test_killed_stopped_resumed_and_slow_in_one_run(cluster, tmp_path):
    job = a_job(FractionalRepetition(num_workers=9, num_stragglers=2), slowed(tmp_path), 18)
    with Ray(policy=UntilDecodable(), deadline_s=30.0).start(workers(job)) as session:
        before = session.pids
        slow = tmp_path / str(before[6])
        slow.write_text("0.5")
        os.kill(before[0], signal.SIGKILL)
        os.kill(before[3], signal.SIGSTOP)
        try:
            reasons = {worker: set() for worker in range(9)}
            for step in range(20):
                collected = asked(session, job, step)
                assert_decodes(job, step, collected)
                for worker, reason in collected.missing.items():
                    reasons[worker].add(reason)
                time.sleep(0.1)
            assert reasons[0] & {"dead", "starting"}
            assert "busy" in reasons[3]
            assert reasons[6] & {"late", "busy"}
        finally:
            os.kill(before[3], signal.SIGCONT)
            slow.unlink()
        end = time.monotonic() + 60
        while not set(collected.missing.values()) <= {"late"}:  # until all are at it again
            assert time.monotonic() < end, collected.missing
            step += 1
            collected = asked(session, job, step)
            assert_decodes(job, step, collected)
            time.sleep(0.1)
        same = [session.pids[worker] == before[worker] for worker in range(9)]
        assert same == [False] + [True] * 8


def resident_bytes(*pids):
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        for pid in pids
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_dropped_tasks_leave_no_memory_behind(cluster, tmp_path):
    job = a_job(FractionalRepetition(num_workers=4, num_stragglers=3), slowed(tmp_path), 4)
    with Ray(policy=UntilDecodable()).start(workers(job)) as session:
        asked(session, job, 0)
        (tmp_path / str(session.pids[3])).write_text("0.01")
        processes = (os.getpid(), *session.pids.values())
        dropped = 0
        for step in range(2_000):
            if step == 400:
                before = resident_bytes(*processes)
            dropped += "late" in asked(session, job, step).missing.values()
        assert dropped > 1_000
        assert resident_bytes(*processes) - before < 32 * 2**20
