"""Drills on engines: who computes what, what is remembered, and what resumes."""

import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

import phalanx
from laws import concrete
from phalanx import attacks
from phalanx.aggregation import CoordinateMedian, Krum, Mean
from phalanx.attacks import (
    Attack,
    FixedWorkers,
    LabelFlip,
    Mimic,
    Mixed,
    OptimalALittleIsEnough,
    OptimalInnerProductManipulation,
    RandomWorkers,
    SignFlip,
    StaleGradient,
)
from phalanx.coding import Detox, DracoRepetition, Uncoded
from phalanx.computations import Broadcast
from phalanx.training import Job, Local, Ray, Round, Site
from phalanx.training.attack_simulation import roles
from phalanx.training.run_folder import RunFolder
from phalanx.training.worker import RoundTask
from training.drifting import (
    a_job,
    a_model,
    flat,
    local_rounds,
    one_round,
    rounds,
    some_data,
    staged,
    workers,
)

REMEMBERING = Mixed(attacks=[StaleGradient(2), LabelFlip(), Mimic(), OptimalALittleIsEnough()])
ATTACKS = [kind() for kind in concrete(attacks, Attack)]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


@every_attack
def test_without_bad_workers_no_attack_changes_anything(attack):
    job = a_job(Uncoded(5))
    drill = staged(job, attack=attack, byzantine=FixedWorkers([]))
    for ours, theirs in zip(local_rounds(job, 3), local_rounds(drill, 3), strict=True):
        assert ours.messages.equal(theirs.messages)
        assert ours.losses.equal(theirs.losses)
        assert theirs.missing == {}
        assert theirs.memory.attack.plans == {}


@every_attack
def test_the_honest_send_what_they_would_have_sent(attack):
    job = a_job(Uncoded(5))
    drill = staged(job, attack=attack, byzantine=FixedWorkers([1, 3]))
    for ours, theirs in zip(local_rounds(job, 3), local_rounds(drill, 3), strict=True):
        assert ours.messages[[0, 2, 4]].equal(theirs.messages[[0, 2, 4]])
        assert ours.losses[[0, 2, 4]].equal(theirs.losses[[0, 2, 4]])


@pytest.mark.parametrize("code", [Uncoded(5), DracoRepetition(3, 1)], ids=["uncoded", "repetition"])
def test_flipped_labels_are_those_of_flipped_data(code):
    job = a_job(code)
    inputs, targets = job.dataset.tensors
    flipped = replace(job, dataset=TensorDataset(inputs, 2 - targets))
    drill = staged(job, attack=LabelFlip(), byzantine=FixedWorkers([2]))
    truth, lie, found = (local_rounds(each, 2)[1] for each in (job, flipped, drill))
    assert found.messages[2].equal(lie.messages[2])
    assert found.losses[2] == lie.losses[2] != truth.losses[2]
    assert not found.messages[2].allclose(truth.messages[2])


def test_flipped_labels_where_many_gradients_are_computed_at_once():
    job = a_job(DracoRepetition(3, 1), attack=LabelFlip(), byzantine=FixedWorkers([2]))
    with Local(chunk_size=2).start(workers(job)) as session:
        together = one_round(session, job)
    (alone,) = local_rounds(job, 1)
    torch.testing.assert_close(together.messages, alone.messages)


def test_labels_that_are_no_classes_are_refused_by_name():
    data = TensorDataset(torch.randn(60, 6), torch.randn(60))
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    stages = Round(Uncoded(3), attack=LabelFlip(), byzantine=FixedWorkers([1]))
    job = Job(model, mse_loss, data, stages, 30, 0)
    with pytest.raises(ValueError, match="model must score every class for LabelFlip"):
        local_rounds(job, 1)


def test_a_stale_gradient_is_that_of_so_many_rounds_ago():
    job = a_job(Uncoded(5))
    drill = staged(job, attack=StaleGradient(2), byzantine=RandomWorkers(2))
    honest, found = local_rounds(job, 7), local_rounds(drill, 7)
    for step in range(7):  # 2 rounds to an epoch
        then = max(0, step - 2)
        for worker in range(5):
            bad = worker in drill.conduct(step)
            expected = honest[then if bad else step]
            assert found[step].messages[worker].equal(expected.messages[worker])
            assert found[step].losses[worker] == expected.losses[worker]
        assert len(found[step].memory.attack.past) == min(step + 1, 2)


def test_a_worker_by_itself_sends_what_one_process_computes_for_it():
    attack = Mixed(attacks=[LabelFlip(), SignFlip()])
    job = a_job(DracoRepetition(3, 1), attack=attack, byzantine=FixedWorkers([0, 2]))
    (here,) = local_rounds(job, 1)
    task = RoundTask(0, Broadcast(flat(job.model)), roles(job, 0))
    for worker in task.roles:
        (process,) = workers(job).packed().make({worker: {}}, Site("cpu", 1))
        sent = task.run(process).value
        assert sent.message.equal(here.messages[worker])
        assert sent.loss == here.losses[worker]


def test_members_of_a_mixture_plan_and_remember_each_for_themselves():
    mixed = Mixed(attacks=[Mimic(), SignFlip(), Mimic(warmup=3)])
    job = a_job(Uncoded(9), attack=mixed, byzantine=FixedWorkers([0, 2, 4, 6, 8]))
    collected = local_rounds(job, 2)[1]
    assert sorted(collected.memory.attack.plans) == [0, 2]  # ranks 0 and 3 share a plan
    assert [int(state[2]) for _, state in sorted(collected.memory.attack.plans.items())] == [1, 2]
    assert collected.messages[0].equal(collected.messages[6])
    honest = collected.messages[[1, 3, 5, 7]]
    assert any(collected.messages[0].equal(row) for row in honest)
    assert any(collected.messages[4].equal(row) for row in honest)


def test_attacks_are_told_the_rule_and_no_code():
    attack = OptimalALittleIsEnough()
    job = a_job(Uncoded(7), attack=attack, byzantine=FixedWorkers([3, 5]))
    rule = Krum(2)
    (found,) = local_rounds(job, 1, rule=rule)
    honest = found.messages[[0, 1, 2, 4, 6]]
    assert found.messages[[3, 5]].equal(attack(honest, 2, aggregate=rule))
    (without,) = local_rounds(job, 1)
    assert without.messages[[3, 5]].equal(attack(honest, 2))


def test_attacks_that_know_detox_find_the_lie_that_wins_a_group():
    code = Detox(9, num_byzantine=2, num_corrupted=1)
    bad = list(code.groups[0][:2])
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    honest = code.encode_all([rows])[[worker for worker in range(9) if worker not in bad]]
    lie = torch.full((2, 4), 9.0)
    found = code.attacked(torch.cat([honest, lie]), code.init(4), bad)
    expected = CoordinateMedian()(torch.stack([lie[0], rows[1], rows[2]]))
    assert found.equal(expected)
    one_is_missing = torch.cat([honest[1:], lie])
    assert code.attacked(one_is_missing, code.init(4), bad).equal(one_is_missing.mean(dim=0))


def test_what_a_rule_cannot_take_is_left_to_the_decoder_to_report():
    code = Uncoded(7, CoordinateMedian(2))
    messages = torch.arange(8.0).reshape(4, 2)
    assert code.attacked(messages, (), []).equal(messages.mean(dim=0))
    broken = torch.full((7, 2), torch.nan)
    assert code.attacked(broken, (), []).isnan().all()
    fit = torch.randn(7, 2)
    assert code.attacked(fit, (), []).equal(CoordinateMedian(2)(fit))


def trained(rule, attack, **options):
    defaults = {"steps": 12, "num_workers": 7, "batch_size": 70, "evaluate_every": 100}
    drill = {"rule": rule, "attack": attack, "byzantine": RandomWorkers(2)}
    return phalanx.train(a_model(), some_data(), **{**defaults, **drill, **options})


ASKED = []


@dataclass(frozen=True)
class Asked(CoordinateMedian):
    """The median, which notes what it is asked."""

    def judge(self, rows):
        ASKED.append(rows.clone())
        return super().judge(rows)


def test_in_a_run_the_search_asks_the_rule_of_the_run():
    ASKED.clear()
    attack = OptimalInnerProductManipulation(evaluations=3)
    run = trained(Asked(), attack, byzantine=FixedWorkers([5, 6]), steps=2)
    assert len(ASKED) == 2 * (2 * 3 + 1 + 1)  # two rounds, both signs, tau = 0, and the decoding
    *tried, decoded = ASKED[:8]
    assert decoded[:5].equal(tried[0][:5])
    assert any(torch.allclose(decoded, each) for each in tried)
    damage = [(each.median(dim=0).values - each[:5].mean(dim=0)).norm() for each in ASKED[:8]]
    assert damage[-1] >= max(damage[:-1]) * (1 - 1e-6)
    assert len(run.rounds) == 2


def test_drills_resume_with_what_they_remember(tmp_path):
    options = {"rule": CoordinateMedian(2), "attack": REMEMBERING}
    options["byzantine"] = FixedWorkers([0, 1, 2])
    whole = trained(**options, steps=9)
    trained(**options, steps=4, out=tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "forgetful")
    resumed = trained(**options, steps=9, out=tmp_path / "run", resume=True)
    assert flat(resumed.model).equal(flat(whole.model))

    folder = RunFolder(tmp_path / "forgetful", resume=True)
    saved = folder.load_checkpoint()
    folder.save_checkpoint(replace(saved, attack={"past": [], "plans": {}}))
    forgetful = trained(**options, steps=9, out=tmp_path / "forgetful", resume=True)
    assert not flat(forgetful.model).equal(flat(whole.model))


def test_who_cannot_be_behind_yet_told_the_truth():
    run = trained(Mean(), StaleGradient(3), byzantine=FixedWorkers([1, 4]), steps=3)
    assert [entry["byzantine"] for entry in run.rounds] == [[], [1, 4], [1, 4]]


@pytest.mark.slow
def test_processes_send_the_bits_of_one_process(cluster):
    for code in (Uncoded(5), DracoRepetition(5, 2)):
        job = a_job(code, attack=REMEMBERING, byzantine=RandomWorkers(3))
        rule = CoordinateMedian()
        here = local_rounds(job, 5, rule=rule)
        with Ray().start(workers(job)) as session:
            for ours, theirs in zip(here, rounds(session, job, 5, rule=rule), strict=True):
                assert theirs.missing == {}
                assert theirs.messages.equal(ours.messages)
                assert theirs.losses.equal(ours.losses)
                pairs = zip(theirs.memory.attack.past, ours.memory.attack.past, strict=True)
                assert all(one.parameters.equal(other.parameters) for one, other in pairs)
                assert theirs.memory.attack.plans.keys() == ours.memory.attack.plans.keys()


@pytest.mark.slow
def test_runs_on_processes_end_with_the_weights_of_one_process(cluster):
    here = trained(CoordinateMedian(3), REMEMBERING, engine=Local(chunk_size=1), steps=6)
    there = trained(CoordinateMedian(3), REMEMBERING, engine=Ray(), steps=6)
    assert flat(here.model).equal(flat(there.model))
