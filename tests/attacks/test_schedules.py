"""Schedules of Byzantine workers."""

import subprocess
import sys

import pytest
import torch

from laws import concrete
from phalanx import attacks
from phalanx.attacks import FixedWorkers, Phases, RandomWorkers, Schedule, SleeperWorkers

SCHEDULES = [kind() for kind in concrete(attacks, Schedule)]
SCHEDULES += [Phases([RandomWorkers(2), SleeperWorkers([3])], [0, 5]), RandomWorkers(0)]


def ids(mask):
    return mask.nonzero().flatten().tolist()


def test_fixed_workers_ignore_step_and_seed():
    schedule = FixedWorkers(workers=[4, 1])
    assert {
        tuple(ids(schedule.byzantine(step, 6, seed))) for step in range(3) for seed in range(3)
    } == {(1, 4)}


def test_random_workers_change_from_step_to_step_and_reach_everybody():
    masks = torch.stack([RandomWorkers(3).byzantine(step, 15, seed=0) for step in range(400)])
    assert masks.sum(dim=1).tolist() == [3] * 400
    assert len({tuple(ids(mask)) for mask in masks}) > 200
    # 400 draws of 3 of 15 make each worker Byzantine 80 times, with a standard deviation of 8.
    assert 48 < masks.sum(dim=0).min() < masks.sum(dim=0).max() < 112


def test_random_workers_depend_on_the_seed():
    schedule = RandomWorkers(3)
    assert any(
        ids(schedule.byzantine(s, 15, 0)) != ids(schedule.byzantine(s, 15, 1)) for s in range(3)
    )


@pytest.mark.slow
def test_another_process_draws_the_same_workers():
    code = (
        "from phalanx.attacks import RandomWorkers\n"
        "print([RandomWorkers(3).byzantine(step, 15, 7).nonzero().flatten().tolist()"
        " for step in range(5)])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    mine = [ids(RandomWorkers(3).byzantine(step, 15, 7)) for step in range(5)]
    assert answer.stdout.strip() == str(mine)


def test_sleepers_behave_until_their_step():
    schedule = SleeperWorkers(workers=[2], from_step=3)
    assert [ids(schedule.byzantine(step, 4, 0)) for step in range(5)] == [[], [], [], [2], [2]]


def test_drawn_sleepers_are_the_same_all_run_long():
    schedule = SleeperWorkers(num_byzantine=2, from_step=1)
    chosen = {tuple(ids(schedule.byzantine(step, 20, 5))) for step in range(1, 9)}
    assert len(chosen) == 1
    assert len(chosen.pop()) == 2
    assert len({tuple(ids(schedule.byzantine(1, 20, seed))) for seed in range(5)}) > 1


def test_phases_follow_one_another_and_see_the_step_of_the_run():
    phases = Phases(
        phases=[FixedWorkers([3]), RandomWorkers(2), SleeperWorkers([0], from_step=9)],
        starts=[1, 3, 6],
    )
    assert [ids(phases.byzantine(step, 8, 0)) for step in range(3)] == [[], [3], [3]]
    for step in (3, 4, 5):
        drawn = RandomWorkers(2).byzantine(step, 8, 0)
        assert phases.byzantine(step, 8, 0).equal(drawn)
    assert [ids(phases.byzantine(step, 8, 0)) for step in (6, 8, 9, 99)] == [[], [], [0], [0]]


def test_permanent_ones_are_in_the_end_byzantine_in_every_step(subtests):
    for schedule in SCHEDULES:
        with subtests.test(repr(schedule)):
            steps = torch.stack([schedule.byzantine(step, 9, 4) for step in range(20, 60)])
            always = steps.all(dim=0)
            assert schedule.permanent(9, 4).equal(always)


def test_bad_arguments_are_named(subtests):
    for make, message in (
        (lambda: Phases(starts=[0]), r"starts must name one step for each .* got \[0\] for 2"),
        (lambda: Phases(phases=[], starts=[]), r"of at least 1 phase, got \[\] for 0"),
        (lambda: Phases(starts=[4, 4]), r"starts must grow from 0 or more, got \[4, 4\]"),
        (lambda: Phases(starts=[-1, 4]), r"starts must grow from 0 or more, got \[-1, 4\]"),
        (lambda: FixedWorkers(workers=[-1]), r"workers must be at least 0, got \[-1\]"),
        (lambda: FixedWorkers(workers=[1, 1]), r"workers must be named once each, got \[1, 1\]"),
        (lambda: SleeperWorkers(workers=[-1]), "workers must be at least 0"),
        (lambda: SleeperWorkers(from_step=-1), "from_step must be at least 0, got -1"),
        (lambda: RandomWorkers(num_byzantine=-2), "num_byzantine must be at least 0, got -2"),
        (
            lambda: FixedWorkers(workers=[1, 5]).byzantine(0, 5, 0),
            r"workers must be below num_workers, got \[1, 5\] of 5",
        ),
        (
            lambda: RandomWorkers(num_byzantine=8).byzantine(0, 5, 0),
            "num_byzantine must be at most num_workers, got 8 of 5",
        ),
        (
            lambda: SleeperWorkers(num_byzantine=8).byzantine(0, 5, 0),
            "num_byzantine must be at most num_workers, got 8 of 5",
        ),
    ):
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make()
