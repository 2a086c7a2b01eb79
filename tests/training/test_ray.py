"""Real worker processes: the bits of one process, and every way in which a process can fail."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

from phalanx.aggregation import CenteredClipping
from phalanx.attacks import (
    ALittleIsEnough,
    Delay,
    FixedWorkers,
    GaussianNoise,
    Mixed,
    NotFinite,
    RandomWorkers,
    ReverseGradient,
    Silence,
    WrongShape,
)
from phalanx.coded_computation import CodedShuffle, ShuffleSession
from phalanx.coding import Detox, DracoCyclic, DracoRepetition, Uncoded
from phalanx.errors import DecodeError, WorkerError
from phalanx.training import Job, Local, Ray, Round, train
from training.drifting import one_round, staged, workers

BATCH_SIZE = 420  # a multiple of every number of partitions here


def a_job(code, **stages):
    numbers = torch.Generator().manual_seed(5)
    inputs = torch.randn(2000, 6, generator=numbers)
    targets = torch.randint(3, (2000,), generator=numbers)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    data = TensorDataset(inputs, targets)
    return Job(model, cross_entropy, data, Round(code, **stages), BATCH_SIZE, 3)


def parameters_of(job):
    return torch.cat([value.detach().reshape(-1) for value in job.model.parameters()])


def true_gradient(job, step):
    """The mean gradient of a round of which nothing is missing and nobody lies."""
    uncoded = Uncoded(job.round.code.num_workers)
    job = staged(job, code=uncoded, attack=None, byzantine=None)
    with Local(chunk_size=1).start(workers(job)) as session:
        return one_round(session, job, step).messages.mean(dim=0)


def assert_decodes(job, step, collected, suspects=()):
    decoded = job.round.code.decode(collected.messages, collected.arrived)
    torch.testing.assert_close(decoded.gradient, true_gradient(job, step), rtol=1e-4, atol=1e-6)
    assert decoded.suspects.nonzero().flatten().tolist() == list(suspects)


def rounds_until_all_are_back(session, job, first, seconds=60):
    """Runs rounds until nobody is missing; gives the reasons seen till then, and the last round."""
    reasons, step, end = set(), first, time.monotonic() + seconds
    while (collected := one_round(session, job, step)).missing:
        assert time.monotonic() < end, collected.missing
        reasons |= set(collected.missing.values())
        step += 1
        time.sleep(0.1)
    return reasons, step, collected


FORGERS = Mixed(attacks=[GaussianNoise(), ALittleIsEnough(z=1.0), ReverseGradient()])


BITWISE = [DracoRepetition(3, 1), Uncoded(5), Detox(7, 2, outer=CenteredClipping())]


@pytest.mark.slow
@pytest.mark.parametrize("code", BITWISE, ids=["repetition", "uncoded", "detox"])
def test_the_same_seed_gives_the_bits_of_one_process(cluster, code):
    job = a_job(code, attack=FORGERS, byzantine=RandomWorkers(2))
    with Ray().start(workers(job)) as there, Local(chunk_size=1).start(workers(job)) as here:
        for step in range(6):  # 4 rounds to an epoch
            ours, theirs = one_round(here, job, step), one_round(there, job, step)
            assert theirs.messages.equal(ours.messages)
            assert theirs.losses.equal(ours.losses)
            assert theirs.arrived.all()
            assert theirs.missing == {}


@pytest.mark.slow
def test_a_run_ends_with_the_weights_of_one_process(cluster):
    def weights(engine):
        job = a_job(DracoRepetition(3, 1))
        drill = {"attack": ReverseGradient(), "byzantine": RandomWorkers(1)}
        train(job.model, job.dataset, job.round.code, engine=engine, steps=8, seed=1, **drill)
        return parameters_of(job)

    assert weights(Ray()).equal(weights(Local(chunk_size=1)))


@pytest.mark.slow
def test_codes_that_weigh_agree_to_rounding_and_survive_what_the_bound_allows(cluster):
    job = a_job(DracoCyclic(5, 1), attack=ReverseGradient(), byzantine=FixedWorkers([2]))
    with (
        Ray(deadline_s=20.0).start(workers(job)) as there,
        Local(chunk_size=1).start(workers(job)) as here,
    ):
        ours, theirs = one_round(here, job, 0), one_round(there, job, 0)
        torch.testing.assert_close(theirs.messages, ours.messages, rtol=1e-5, atol=1e-6)
        assert_decodes(job, 0, theirs, suspects=[2])
        os.kill(there.pids[4], signal.SIGKILL)  # e + 2 b = 3 > 2 s
        collected = one_round(there, job, 1)
        assert collected.missing == {4: "dead"}
        with pytest.raises(DecodeError, match="missing: 4"):
            job.round.code.decode(collected.messages, collected.arrived)


@pytest.mark.slow
def test_the_killed_are_erasures_and_come_back(cluster):
    job = a_job(DracoCyclic(5, 2))
    with Ray(deadline_s=20.0).start(workers(job)) as session:
        before = session.pids
        for worker in (0, 1, 2, 3):
            os.kill(before[worker], signal.SIGKILL)
        collected = one_round(session, job, 0)
        assert collected.missing == dict.fromkeys(range(4), "dead")
        assert collected.arrived.tolist() == [False, False, False, False, True]
        assert_decodes(job, 0, collected)  # e = 2 s
        began = time.monotonic()
        assert set(one_round(session, job, 1).missing.values()) <= {"starting"}
        assert time.monotonic() - began < 10  # the round waits for no process to start
        reasons, step, collected = rounds_until_all_are_back(session, job, 2)
        assert reasons <= {"starting"}
        assert_decodes(job, step, collected)
        assert sorted(session.pids) == list(range(5))
        assert [before[w] == session.pids[w] for w in range(5)] == [False] * 4 + [True]


@pytest.mark.slow
def test_the_stopped_are_late_then_busy_and_rejoin_when_they_go_on(cluster):
    job = a_job(DracoRepetition(3, 1))
    with Ray(deadline_s=4.0).start(workers(job)) as session:
        before = session.pids
        os.kill(before[1], signal.SIGSTOP)
        try:
            collected = one_round(session, job, 0)
            assert collected.missing == {1: "late"}
            assert collected.compute_s >= 4.0
            assert_decodes(job, 0, collected)
            collected = one_round(session, job, 1)
            assert collected.missing == {1: "busy"}
            assert collected.compute_s < 4.0  # nobody waits for a task that was not given
        finally:
            os.kill(before[1], signal.SIGCONT)
        reasons, step, collected = rounds_until_all_are_back(session, job, 2)
        assert reasons <= {"busy"}
        with Local(chunk_size=1).start(
            workers(job)
        ) as here:  # this round's message, not the stale one
            assert collected.messages.equal(one_round(here, job, step).messages)
        assert session.pids == before


@pytest.mark.slow
def test_the_hung_are_started_anew(cluster):
    job = a_job(DracoRepetition(3, 1))
    with Ray(deadline_s=4.0, restart_after_s=5.0).start(workers(job)) as session:
        hung = session.pids[2]
        os.kill(hung, signal.SIGSTOP)
        assert one_round(session, job, 0).missing == {2: "late"}
        reasons, _, _ = rounds_until_all_are_back(session, job, 1)
        assert reasons == {"busy", "starting"}
        assert session.pids[2] != hung


@pytest.mark.slow
def test_byzantine_workers_act_in_their_own_processes(cluster):
    attack = Mixed(attacks=[Delay(delay_s=30.0), Silence(), WrongShape(), NotFinite()])
    job = a_job(DracoCyclic(7, 3), attack=attack, byzantine=FixedWorkers([0, 2, 3, 6]))
    with Ray(deadline_s=5.0).start(workers(job)) as session:
        collected = one_round(session, job, 0)
        assert collected.missing == {0: "late", 2: "silent", 3: "wrong shape"}
        assert collected.messages[6].isnan().all()
        assert_decodes(job, 0, collected, suspects=[6])
        collected = one_round(session, job, 1)
        assert collected.missing == {0: "busy", 2: "silent", 3: "wrong shape"}
        assert_decodes(job, 1, collected, suspects=[6])


class _Torn:
    """What cannot be unpickled."""

    def __call__(self, outputs, targets):
        raise NotImplementedError

    def __reduce__(self):
        return int, ("torn",)


@pytest.mark.slow
def test_exceptions_of_a_worker_stop_nobody_else(cluster):
    class Faulty(Dataset):  # defined here, it travels by value
        def __init__(self, dataset, bad):
            self.dataset, self.bad = dataset, bad

        def __len__(self):
            return len(self.dataset)

        def __getitem__(self, index):
            if index in self.bad:
                raise LookupError(f"sample {index} is torn\nand more is said about it")
            return self.dataset[index]

    job = a_job(Uncoded(3))
    bad = job.round.order.samples(job.batches, 0, 1)[:1].tolist()
    job = replace(job, dataset=Faulty(job.dataset, bad))
    with Ray(deadline_s=20.0).start(workers(job)) as session:
        collected = one_round(session, job, 0)
        assert collected.missing == {1: f"failed: LookupError: sample {bad[0]} is torn"}
        assert collected.arrived.tolist() == [True, False, True]
        before = session.pids
        assert one_round(session, job, 1).missing == {}
        assert session.pids == before
        first = collected.failures[1]
        assert isinstance(first.error, LookupError)
        assert "in __getitem__" in first.trace
    with pytest.raises(WorkerError, match=r"no worker of the engine Ray could start: 2 .*torn"):
        Ray().start(workers(replace(a_job(Uncoded(2)), loss=_Torn())))


def mistaken(job):
    """The job with a wrong label wherever nobody looks before the first round."""

    class Mislabelled(Dataset):  # defined here, it travels by value
        def __init__(self, dataset, looked_at):
            self.dataset, self.looked_at = dataset, looked_at

        def __len__(self):
            return len(self.dataset)

        def __getitem__(self, index):
            value, target = self.dataset[index]
            return value, target if index < self.looked_at else torch.full_like(target, 3)

    looked_at = job.batch_size // job.round.code.num_partitions
    return replace(job, dataset=Mislabelled(job.dataset, looked_at))


@pytest.mark.slow
def test_the_users_own_exception_is_told_when_everybody_meets_it(cluster, tmp_path):
    job = mistaken(a_job(DracoRepetition(3, 1)))
    out = {"out": tmp_path / "run", "steps": 2}
    with pytest.raises(WorkerError, match="nobody answered in round 0: 3 workers failed") as caught:
        train(job.model, job.dataset, job.round.code, engine=Ray(), **out)
    assert "ValueError: targets must be classes from 0 to 2" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    notes = "\n".join(caught.value.__notes__)
    assert "workers [0, 1, 2] failed; worker 0:" in notes
    assert "in cross_entropy" in notes
    assert "met in round 0, with the samples of partition 0" in notes
    assert sorted(caught.value.reasons) == [0, 1, 2]
    with pytest.raises(ValueError, match="targets must be classes from 0 to 2") as caught:
        train(job.model, job.dataset, job.round.code, engine=Local(chunk_size=1), steps=2)
    assert "met in round 0" in caught.value.__notes__[-1]


@pytest.mark.slow
def test_what_some_workers_raised_is_told_once_it_costs_the_round(cluster, tmp_path):
    class Faulty(Dataset):  # defined here, it travels by value
        def __init__(self, dataset, bad):
            self.dataset, self.bad = dataset, bad

        def __len__(self):
            return len(self.dataset)

        def __getitem__(self, index):
            if index in self.bad:
                raise LookupError(f"sample {index} is torn")
            return self.dataset[index]

    job = a_job(DracoRepetition(6, 1))
    bad = job.round.order.samples(job.batches, 0, 0)[:1].tolist()
    data = Faulty(job.dataset, bad)
    out = {"out": tmp_path / "run", "steps": 2, "seed": job.seed, "batch_size": BATCH_SIZE}
    with pytest.raises(DecodeError) as caught:
        train(job.model, data, job.round.code, engine=Ray(), **out)
    told = "\n".join(caught.value.__notes__)
    assert f"LookupError: sample {bad[0]} is torn" in told
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.slow
def test_sessions_of_coded_computation_tell_what_workers_raised(cluster):
    def mistake(rows):
        raise ZeroDivisionError("by nothing")

    shuffle = CodedShuffle(num_workers=3, num_rows=60, cache_fraction=0.6)
    with ShuffleSession(Ray(), shuffle, [torch.arange(60)]) as session:
        with pytest.raises(WorkerError, match="3 workers failed, worker 0 with ZeroDivisionError"):
            session.map(mistake)
        assert session.advance().reasons == {}


OWN_RAY = """
import os, torch
from torch.utils.data import TensorDataset
from phalanx.coding import DracoRepetition
from phalanx.computations import Broadcast
from phalanx.training import Job, Ray, Round, TrainingWorkers, exchange
import ray

data = TensorDataset(torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
stages = Round(DracoRepetition(1, 0))
job = Job(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), data, stages, 8, 0)
with Ray().start(TrainingWorkers(job, {})) as session:
    assert exchange(session, job, 0, Broadcast(torch.zeros(6))).missing == {}
    (pid,) = session.pids.values()
    assert ray.is_initialized()
assert not ray.is_initialized()
assert "RAY_USAGE_STATS_ENABLED" not in os.environ
try:
    os.kill(pid, 0)
except ProcessLookupError:
    pass
else:
    raise AssertionError("a worker was left behind")
"""


def run(program):
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_")}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=environment
    )


@pytest.mark.slow
def test_ray_is_ended_by_whoever_started_it():
    pytest.importorskip("ray")
    done = run(OWN_RAY)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


WITHOUT_RAY = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import phalanx.training
assert "Ray" in phalanx.training.__all__
engine = phalanx.training.Ray(deadline_s=3.0)
try:
    engine.start(None)
except ImportError as error:
    assert str(error) == "the engine Ray needs Ray: pip install 'phalanx[ray]'", error
else:
    raise AssertionError
"""


@pytest.mark.slow
def test_the_engine_has_a_name_where_ray_is_not_installed():
    done = run(WITHOUT_RAY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deadline_s": 0.0}, "deadline_s must be finite and above 0, got 0.0"),
        ({"deadline_s": float("inf")}, "deadline_s must be finite"),
        (
            {"deadline_s": 9.0, "restart_after_s": 8.0},
            "restart_after_s must be at least deadline_s",
        ),
        ({"start_timeout_s": -1.0}, "start_timeout_s must be finite and above 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"threads_per_worker": 0}, "threads_per_worker must be at least 1, got 0"),
        ({"cpus_per_worker": -0.1}, "cpus_per_worker must be finite and at least 0"),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker must be finite and at least 0"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ray(**arguments)
