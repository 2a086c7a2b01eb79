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
from phalanx.coding import Detox, DracoCyclic, DracoRepetition, Uncoded
from phalanx.computations import Broadcast
from phalanx.errors import TooManyByzantineError
from phalanx.training import Local, Ray, Site
from phalanx.training.attack_simulation import roles
from phalanx.training.worker import RoundTask
from phalanx.transforms import WorkerMomentum
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

FORMS = [WorkerMomentum(0.9, "average"), WorkerMomentum(0.9, "sum")]
every_form = pytest.mark.parametrize("momentum", FORMS, ids=repr)
EVERYTHING = Mixed(
    [StaleGradient(2), LabelFlip(), InnerProductManipulation(), GaussianNoise(), Silence()]
)


def a_job(code, momentum=FORMS[0], **drill):
    return drifting.a_job(code, transforms=[momentum] if momentum else (), **drill)


def trained(**options):
    defaults = {"steps": 12, "num_workers": 7, "batch_size": 70, "evaluate_every": 100}
    options = {**defaults, "transforms": [WorkerMomentum()], **options}
    return phalanx.train(a_model(), some_data(), **options)


@pytest.mark.parametrize("form", ["average", "sum"])
@given(beta=st.floats(0, 0.99), seed=st.integers(0, 99), steps=st.integers(1, 6))
def test_the_momentum_is_the_sum_that_it_stands_for(form, beta, seed, steps):
    numbers = torch.Generator().manual_seed(seed)
    gradients = torch.randn(steps, 20, generator=numbers, dtype=torch.float64)
    momentum, state = WorkerMomentum(beta, form), ()
    for gradient in gradients:
        found, state = momentum.update(gradient, state, None)
        assert state[0].equal(found)
    weights = [beta ** (steps - 1 - t) for t in range(steps)]
    if form == "average":
        weights = [weights[0], *(weight * (1 - beta) for weight in weights[1:])]
    expected = sum(weight * one for weight, one in zip(weights, gradients, strict=True))
    torch.testing.assert_close(found, expected)


@every_form
def test_nothing_is_overwritten(momentum):
    last, messages = torch.randn(2, 1003).unbind()
    before = last.clone(), messages.clone()
    momentum.update(messages, (last,), None)
    assert last.equal(before[0])
    assert messages.equal(before[1])


@every_form
def test_what_is_not_finite_starts_anew(momentum):
    broken = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    healed, _ = momentum.update(torch.ones(4), (broken,), None)
    assert healed[:3].tolist() == [1.0, 1.0, 1.0]
    unknown = torch.full((4,), torch.nan)
    known, fresh = (momentum.update(torch.ones(4), state, None) for state in ((unknown,), ()))
    assert known[0].equal(fresh[0])


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
    states = [()] * code.num_workers
    for messages, found in zip(plain, local_rounds(a_job(code, momentum), 4), strict=True):
        for worker, message in enumerate(messages):
            expected, states[worker] = momentum.update(message, states[worker], None)
            assert found.messages[worker].equal(expected)
            assert found.momenta[worker].equal(expected)


def test_what_is_remembered_stays_true_whatever_is_sent():
    drill = {"byzantine": RandomWorkers(2)}
    job = a_job(Uncoded(5), attack=Mixed([ReverseGradient(), WrongShape()]), **drill)
    for truth, found in zip(local_rounds(honest(job), 4), local_rounds(job, 4), strict=True):
        assert found.momenta.equal(truth.messages)
        assert not found.messages.equal(truth.messages)


def test_attacks_read_the_honest_momenta():
    attack = InnerProductManipulation(0.5)
    job = a_job(Uncoded(5), attack=attack, byzantine=FixedWorkers([1, 3]))
    found = local_rounds(job, 3)[-1]
    assert found.messages[[1, 3]].equal(attack(found.momenta[[0, 2, 4]], 2))


def test_flipped_labels_enter_the_momentum():
    job = a_job(Uncoded(3), attack=LabelFlip(), byzantine=FixedWorkers([2]))
    flipped = TensorDataset(job.dataset.tensors[0], 2 - job.dataset.tensors[1])
    lies = local_rounds(replace(honest(job), dataset=flipped), 3)[-1]
    found = local_rounds(job, 3)[-1]
    assert found.messages[2].equal(lies.messages[2])
    assert found.momenta.equal(found.messages)


def test_workers_by_themselves_send_what_one_process_computes_for_them():
    attack = Mixed([ReverseGradient(), LabelFlip(), Silence()])
    job = a_job(DracoRepetition(5, 1), attack=attack, byzantine=RandomWorkers(3))
    packed = pickle.loads(pickle.dumps(workers(job).packed()))
    here = local_rounds(job, 4)
    for worker in range(5):
        (process,) = packed.make({worker: {}}, Site("cpu", 1))
        for step in range(4):
            if step == 2:  # it dies, and is told what it knew
                (process,) = packed.make({worker: here[1].states[worker]}, Site("cpu", 1))
            task = RoundTask(step, Broadcast(drifted(job, step)), roles(job, step))
            reply = task.run(process)
            assert process.state["transforms.0"][0].equal(here[step].momenta[worker])
            assert (reply.missing is not None) == (worker in here[step].missing)
            if reply.missing is None:
                assert reply.value.message.equal(here[step].messages[worker])


def test_momentum_in_the_workers_is_momentum_in_the_optimizer():
    def sgd(momentum):
        return lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=momentum)

    ours = trained(transforms=[WorkerMomentum(0.8, "sum")], optimizer=sgd(0.0))
    theirs = trained(transforms=(), optimizer=sgd(0.8))
    torch.testing.assert_close(flat(ours.model), flat(theirs.model))
    assert ours.result["transforms"] == "(WorkerMomentum(beta=0.8, form='sum'),)"
    assert any("Karimireddy" in method for method in ours.result["methods"])
    assert theirs.result["transforms"] is None


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
    run = trained(resume=True, changes=["attack", "byzantine"], **options)
    assert flat(run.model).equal(flat(trained(**{**options, "out": None}).model))


def test_replicas_that_change_from_round_to_round_have_no_common_momentum():
    with pytest.raises(ValueError, match="WorkerMomentum needs workers that compute the same"):
        trained(code=Detox(6, 1))
    trained(code=Detox(6, 1, regroup=False), steps=2)


@pytest.mark.slow
def test_processes_send_the_bits_of_one_process_and_take_up_a_run(cluster):
    job = a_job(DracoRepetition(5, 2), attack=EVERYTHING, byzantine=RandomWorkers(4))
    here = local_rounds(job, 6)
    with Ray().start(workers(job)) as session:
        there = list(rounds(session, job, 4))
    with Ray().start(workers(job, there[-1])) as session:  # new processes
        there += rounds(session, job, 2, there[-1], first=4)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.missing == ours.missing
        assert theirs.messages[theirs.arrived].equal(ours.messages[ours.arrived])
        assert theirs.momenta.equal(ours.momenta)


@pytest.mark.slow
def test_the_dead_keep_their_last_momentum_and_go_on_with_it(cluster):
    job = a_job(Uncoded(3))
    with Ray(deadline_s=20.0).start(workers(job)) as session:
        *_, second = rounds(session, job, 2)
        os.kill(session.pids[1], signal.SIGKILL)
        step, found = 2, second
        (found,) = rounds(session, job, 1, second, first=step)
        assert found.missing == {1: "dead"}
        while found.missing:
            step += 1
            (found,) = rounds(session, job, 1, found, first=step)
        plain = local_rounds(staged(job, transforms=()), 1, first=step)[0].messages[1]
        expected, _ = FORMS[0].update(plain, second.state("transforms.0")[1], None)
        assert found.messages[1].equal(expected)


@pytest.mark.slow
def test_who_has_never_been_heard_has_no_momentum(cluster):
    job = a_job(Uncoded(3))
    with Ray(deadline_s=20.0).start(workers(job)) as session:
        os.kill(session.pids[2], signal.SIGKILL)
        (found,) = rounds(session, job, 1)
        assert found.missing == {2: "dead"}
        assert sorted(found.states) == [0, 1]
        assert found.momenta.equal(found.messages[:2])


@pytest.mark.slow
def test_runs_on_processes_end_with_the_weights_of_one_process(cluster, tmp_path):
    drill = {"attack": EVERYTHING, "byzantine": RandomWorkers(2), "rule": CoordinateMedian(2)}
    drill |= {"num_workers": 5}
    here = trained(**drill, engine=Local(chunk_size=1), steps=6, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    trained(**drill, engine=Ray(), steps=3, out=tmp_path / "run")
    there = trained(**drill, engine=Ray(), steps=6, out=tmp_path / "run", resume=True)
    assert flat(here.model).equal(flat(there.model))
