"""Workers that send momentum: the formula, what is remembered, and the bits of every engine."""

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
from phalanx.aggregation import CenteredClipping, CoordinateMedian
from phalanx.attacks import (
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
from phalanx.coding import Detox, DracoCyclic, DracoRepetition
from phalanx.communication.serialization import SharedTensor
from phalanx.errors import TooManyByzantineError
from phalanx.training import Local, Ray, Session
from phalanx.training.attack_simulation import roles
from phalanx.training.decoding import Uncoded
from phalanx.training.engines.base import Engine
from phalanx.training.engines.worker import Recollection, Worker, pack_job
from phalanx.transforms import WorkerMomentum
from training import drifting
from training.drifting import NOTHING, a_model, drifted, flat, local_rounds, rounds, some_data

FORMS = [WorkerMomentum(0.9, "average"), WorkerMomentum(0.9, "sum")]
every_form = pytest.mark.parametrize("momentum", FORMS, ids=repr)
EVERYTHING = Mixed(
    [StaleGradient(2), LabelFlip(), InnerProductManipulation(), GaussianNoise(), Silence()]
)


def a_job(code, momentum=FORMS[0], **drill):
    return drifting.a_job(code, worker_momentum=momentum, **drill)


def trained(**options):
    defaults = {"steps": 12, "num_workers": 7, "batch_size": 70, "evaluate_every": 100}
    options = {**defaults, "worker_momentum": WorkerMomentum(), **options}
    return phalanx.train(a_model(), some_data(), **options)


@pytest.mark.parametrize("form", ["average", "sum"])
@given(beta=st.floats(0, 0.99), seed=st.integers(0, 99), steps=st.integers(1, 6))
def test_the_momentum_is_the_sum_that_it_stands_for(form, beta, seed, steps):
    numbers = torch.Generator().manual_seed(seed)
    gradients = torch.randn(steps, 4, 5, generator=numbers, dtype=torch.float64)
    momentum, found = WorkerMomentum(beta, form), None
    for gradient in gradients:
        found = momentum.update(gradient, found)
    weights = [beta ** (steps - 1 - t) for t in range(steps)]
    if form == "average":
        weights = [weights[0], *(weight * (1 - beta) for weight in weights[1:])]
    expected = sum(weight * one for weight, one in zip(weights, gradients, strict=True))
    torch.testing.assert_close(found, expected)


@every_form
def test_a_table_is_its_rows_to_the_bit_and_nothing_is_overwritten(momentum):
    last, messages = torch.randn(2, 5, 1003).unbind()
    before = last.clone(), messages.clone()
    table = momentum.update(messages, last)
    for row, one, other in zip(table, messages, last, strict=True):
        assert momentum.update(one, other).equal(row)
    assert last.equal(before[0])
    assert messages.equal(before[1])


@every_form
def test_what_is_not_finite_starts_anew(momentum):
    broken = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    healed = momentum.update(torch.ones(4), broken)
    assert healed[:3].tolist() == [1.0, 1.0, 1.0]
    unknown = torch.full((4,), torch.nan)
    assert momentum.update(torch.ones(4), unknown).equal(momentum.update(torch.ones(4), None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.0}, "beta must be at least 0 and below 1, got 1.0"),
        ({"beta": -0.1}, "beta must be at least 0"),
        ({"beta": float("nan")}, "beta must be at least 0"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WorkerMomentum(**arguments)


@every_form
@pytest.mark.parametrize(
    "code",
    [Uncoded(5), DracoRepetition(3, 1), DracoCyclic(5, 1)],
    ids=lambda code: type(code).__name__,
)
def test_messages_are_the_momenta_of_messages_without(code, momentum):
    plain = [found.messages for found in local_rounds(a_job(code, None), 4)]
    expected = None
    for message, found in zip(plain, local_rounds(a_job(code, momentum), 4), strict=True):
        expected = momentum.update(message, expected)
        assert found.messages.equal(expected)
        assert found.memory.momenta.equal(expected)


def test_what_is_remembered_stays_true_whatever_is_sent():
    drill = {"schedule": RandomWorkers(2)}
    job = a_job(Uncoded(5), attack=Mixed([ReverseGradient(), WrongShape()]), **drill)
    honest = local_rounds(replace(job, attack=None, schedule=None), 4)
    for truth, found in zip(honest, local_rounds(job, 4), strict=True):
        assert found.memory.momenta.equal(truth.messages)
        assert not found.messages.equal(truth.messages)


def test_attacks_read_the_honest_momenta():
    attack = InnerProductManipulation(0.5)
    job = a_job(Uncoded(5), attack=attack, schedule=FixedWorkers([1, 3]))
    found = local_rounds(job, 3)[-1]
    assert found.messages[[1, 3]].equal(attack(found.memory.momenta[[0, 2, 4]], 2))


def test_flipped_labels_enter_the_momentum():
    job = a_job(Uncoded(3), attack=LabelFlip(), schedule=FixedWorkers([2]))
    flipped = TensorDataset(job.dataset.tensors[0], 2 - job.dataset.tensors[1])
    lies = local_rounds(replace(job, dataset=flipped, attack=None, schedule=None), 3)[-1]
    found = local_rounds(job, 3)[-1]
    assert found.messages[2].equal(lies.messages[2])
    assert found.memory.momenta.equal(found.messages)


def test_workers_by_themselves_send_what_one_process_computes_for_them():
    attack = Mixed([ReverseGradient(), LabelFlip(), Silence()])
    job = a_job(DracoRepetition(5, 1), attack=attack, schedule=RandomWorkers(3))
    packed = pickle.loads(pickle.dumps(pack_job(job)))
    here = list(local_rounds(job, 4))
    for worker in range(5):
        process = Worker(worker, packed, 1, torch.get_num_threads(), "cpu")
        for step in range(4):
            if step == 2:  # it dies, and is told what it knew
                process = Worker(worker, packed, 1, torch.get_num_threads(), "cpu")
            known = None
            if step == 2:
                known = Recollection(SharedTensor.pack(here[1].memory.momenta[worker]), ())
            parameters = SharedTensor.pack(drifted(job, step))
            role = roles(job, step).get(worker)
            reply = process.compute(step, parameters, role, known)
            momentum = reply.momentum or reply.message
            assert momentum.unpack().equal(here[step].memory.momenta[worker])
            assert (reply.message is None) == (worker in here[step].missing)
            if reply.message is not None:
                assert reply.message.unpack().equal(here[step].messages[worker])


def test_momentum_in_the_workers_is_momentum_in_the_optimizer():
    def sgd(momentum):
        return lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=momentum)

    ours = trained(worker_momentum=WorkerMomentum(0.8, "sum"), optimizer=sgd(0.0))
    theirs = trained(worker_momentum=None, optimizer=sgd(0.8))
    torch.testing.assert_close(flat(ours.model), flat(theirs.model))
    assert ours.result["worker_momentum"] == "WorkerMomentum(beta=0.8, form='sum')"
    assert any("Karimireddy" in method for method in ours.result["methods"])
    assert theirs.result["worker_momentum"] is None


def test_a_run_killed_at_any_checkpoint_ends_with_the_same_bits(tmp_path):
    rule = CenteredClipping(radius=1.0, num_byzantine=2)
    options = {"rule": rule, "attack": EVERYTHING, "byzantine": RandomWorkers(2), "steps": 6}
    whole = flat(trained(**options).model)
    for last in range(4):  # checkpoints last and last + 1 are kept; the newer one is torn off
        out = tmp_path / str(last)
        trained(**{**options, "steps": last + 1}, out=out, checkpoint_every=1)
        (out / "checkpoints" / f"step-{last + 1:09d}.pt").unlink()
        assert flat(trained(**options, out=out, resume=True).model).equal(whole)


def test_a_run_that_too_many_lies_stopped_goes_on_as_if_they_had_not_been(tmp_path):
    options = {"code": DracoRepetition(6, 1), "batch_size": 60, "out": tmp_path / "run"}
    with pytest.raises(TooManyByzantineError):
        trained(attack=NotFinite(), byzantine=SleeperWorkers([0, 1], from_step=5), **options)
    run = trained(resume=True, **options)
    assert flat(run.model).equal(flat(trained(**{**options, "out": None}).model))


def test_a_run_resumes_from_checkpoints_of_before_there_was_momentum(tmp_path):
    options = {"worker_momentum": None, "out": tmp_path / "run"}
    trained(**options, steps=4)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    content = torch.load(newest, weights_only=True)
    del content["drill"]["momenta"]
    torch.save(content, newest)
    run = trained(**options, resume=True)
    assert flat(run.model).equal(flat(trained(worker_momentum=None).model))


class Forgetful(Session):
    """An engine's session that knows nothing of momentum."""

    def __init__(self, inner):
        self.inner = inner

    def round(self, step, parameters, memory=NOTHING, aggregate=None):
        return self.inner.round(step, parameters, memory, aggregate)._replace(memory=NOTHING)

    def exclude(self, workers):
        self.inner.exclude(workers)


class ForgetfulEngine(Engine):
    def start(self, job):
        return Forgetful(Local().start(job))


def test_engines_without_momentum_run_without_and_say_so_with():
    trained(engine=ForgetfulEngine(), worker_momentum=None, steps=2)
    with pytest.raises(ValueError, match="engine must know worker_momentum"):
        trained(engine=ForgetfulEngine())


def test_replicas_that_change_from_round_to_round_have_no_common_momentum():
    with pytest.raises(ValueError, match="worker_momentum needs workers that compute the same"):
        trained(code=Detox(6, 1))
    trained(code=Detox(6, 1, regroup=False), steps=2)


@pytest.mark.slow
def test_processes_send_the_bits_of_one_process_and_take_up_a_run(cluster):
    job = a_job(DracoRepetition(5, 2), attack=EVERYTHING, schedule=RandomWorkers(4))
    here = local_rounds(job, 6)
    with Ray().start(job) as session:
        there = list(rounds(session, job, 4))
    with Ray().start(job) as session:  # new processes
        there += rounds(session, job, 2, there[-1].memory, first=4)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.missing == ours.missing
        assert theirs.messages[theirs.arrived].equal(ours.messages[ours.arrived])
        assert theirs.memory.momenta.equal(ours.memory.momenta)


@pytest.mark.slow
def test_the_dead_keep_their_last_momentum_and_go_on_with_it(cluster):
    job = a_job(Uncoded(3))
    with Ray(deadline_s=20.0).start(job) as session:
        *_, second = rounds(session, job, 2)
        os.kill(session.pids[1], signal.SIGKILL)
        memory, step = second.memory, 2
        (found,) = rounds(session, job, 1, memory, first=step)
        assert found.missing == {1: "dead"}
        while found.missing:
            assert found.memory.momenta[1].equal(second.memory.momenta[1])
            step += 1
            (found,) = rounds(session, job, 1, found.memory, first=step)
        plain = local_rounds(replace(job, worker_momentum=None), 1, first=step)[0].messages[1]
        expected = job.worker_momentum.update(plain, second.memory.momenta[1])
        assert found.messages[1].equal(expected)


@pytest.mark.slow
def test_who_has_never_been_heard_has_no_momentum(cluster):
    job = a_job(Uncoded(3))
    with Ray(deadline_s=20.0).start(job) as session:
        os.kill(session.pids[2], signal.SIGKILL)
        (found,) = rounds(session, job, 1)
        assert found.missing == {2: "dead"}
        assert found.memory.momenta[2].isnan().all()
        assert found.memory.momenta[:2].equal(found.messages[:2])


@pytest.mark.slow
def test_runs_on_processes_end_with_the_weights_of_one_process(cluster, tmp_path):
    drill = {"attack": EVERYTHING, "byzantine": RandomWorkers(2), "rule": CoordinateMedian(2)}
    drill |= {"num_workers": 5}
    here = trained(**drill, engine=Local(chunk_size=1), steps=6, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    trained(**drill, engine=Ray(), steps=3, out=tmp_path / "run")
    there = trained(**drill, engine=Ray(), steps=6, out=tmp_path / "run", resume=True)
    assert flat(here.model).equal(flat(there.model))
