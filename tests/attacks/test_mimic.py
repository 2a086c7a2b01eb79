"""Mimic: whose message is copied, and for how long."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx
from phalanx.attacks import AdversaryKnowledge, FixedWorkers, Mimic, Mixed, RandomWorkers, SignFlip
from training.drifting import a_model, some_data


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_rows(seed, num_honest=6, dim=4):
    return torch.randn(num_honest, dim, generator=seeded(seed))


def a_view(rows, workers=None, seed=0):
    return AdversaryKnowledge(rows, tuple(workers or range(len(rows))), 2, generator=seeded(seed))


@given(seed=st.integers(0, 2**32), num_honest=st.integers(1, 9))
def test_an_honest_row_bit_for_bit(seed, num_honest):
    honest = random_rows(seed, num_honest)
    one, other = Mimic()(honest, 2, generator=seeded(seed))
    assert torch.equal(one, other)
    assert any(torch.equal(one, row) for row in honest)


def test_the_worker_that_is_farthest_where_messages_vary_most():
    honest = torch.tensor([[0.0, 0.1], [0.0, -0.1], [9.0, 0.0], [-9.0, 0.0], [1.0, 0.0]])
    copied = {tuple(Mimic()(honest, 1, generator=seeded(seed))[0].tolist()) for seed in range(20)}
    assert copied == {(9.0, 0.0), (-9.0, 0.0)}  # the sign of the direction is random


def by_definition(warmup, rounds):
    """Direction and target after each round, as the method is written down."""
    direction = torch.randn(rounds[0].shape[1], generator=seeded(0))
    mean = torch.zeros_like(direction)
    found = []
    for number, rows in enumerate(rounds):
        if number < warmup:
            mean = number / (1 + number) * mean + sum(rows) / len(rows) / (1 + number)
            turned = sum(((row - mean) @ direction) * (row - mean) for row in rows)
            turned = turned / turned.norm()
            direction = number / (1 + number) * direction + turned / (1 + number)
            target = max(range(len(rows)), key=lambda row: rows[row] @ direction)
        found.append((direction, target))
    return found


def test_power_steps_in_warmup_and_one_target_afterwards(subtests):
    rounds = [random_rows(seed) for seed in range(6)]
    for warmup in (1, 3):
        expected, memory = by_definition(warmup, rounds), ()
        for step, rows in enumerate(rounds):
            with subtests.test(warmup=warmup, step=step):
                # Only the first round's generator counts: it draws where the direction begins.
                plan, memory = Mimic(warmup).plan(a_view(rows, seed=step), memory)
                direction, target = expected[step]
                torch.testing.assert_close(memory[0], direction)
                assert plan.forge(rows[0], rows, 2).equal(rows[target])


def test_the_target_is_a_worker_and_not_a_row():
    first, second = random_rows(0), random_rows(1)
    _, memory = Mimic().plan(a_view(first, workers=[1, 2, 4, 5, 6, 8]))
    target = int(memory[3])
    there = [worker for worker in range(9) if worker not in (0, 3, 7)][::-1]
    plan, _ = Mimic().plan(a_view(second, workers=there), memory)
    assert plan.forge(second[0], second, 2).equal(second[there.index(target)])


def test_while_the_target_is_away_another_takes_its_place():
    first, second = random_rows(0), random_rows(1)
    _, memory = Mimic().plan(a_view(first))
    target = int(memory[3])
    others = [worker for worker in range(6) if worker != target]
    plan, kept = Mimic().plan(a_view(second[others], workers=others), memory)
    farthest = int((second[others] @ memory[0]).argmax())
    assert plan.forge(second[0], second[others], 2).equal(second[others][farthest])
    assert int(kept[3]) == target


def test_equal_messages_leave_the_direction_alone():
    rows = torch.ones(4, 3)
    plan, memory = Mimic().plan(a_view(rows))
    assert memory[0].equal(torch.randn(3, generator=seeded(0)))
    assert plan.forge(rows[0], rows, 1).equal(rows[0])


def test_a_target_is_chosen_in_some_round():
    with pytest.raises(ValueError, match="warmup must be at least 1, got 0"):
        Mimic(warmup=0)


def test_a_given_worker_is_the_target_in_all_rounds_in_which_it_is_there():
    attack, memory = Mimic(worker=2), ()
    for seed in range(3):
        rows = random_rows(seed)
        plan, memory = attack.plan(a_view(rows), memory)
        assert plan.forge(rows[0], rows, 2).equal(rows[2])
    others = [0, 1, 3, 4, 5]
    plan, memory = attack.plan(a_view(rows[others], workers=others), memory)
    farthest = int((rows[others] @ memory[0]).argmax())
    assert plan.forge(rows[0], rows[others], 2).equal(rows[others][farthest])


def test_a_given_worker_must_be_honest(subtests):
    told = r"worker of Mimic must be an honest worker's id, got {} of \[{}\]"
    with pytest.raises(ValueError, match="worker must be at least 0, got -1"):
        Mimic(worker=-1)
    for attack in (Mimic(worker=6), Mixed([SignFlip(), Mimic(worker=6)])):
        with pytest.raises(ValueError, match=told.format(6, "0, 1, 2, 3, 4, 5")):
            attack(random_rows(0), 2)
    cases = [(FixedWorkers([0, 2]), 2, "1, 3"), (RandomWorkers(1), 4, "0, 1, 2, 3")]
    for schedule, worker, honest in cases:
        with subtests.test(worker=worker):
            call = {"num_workers": 4, "batch_size": 8, "steps": 1, "byzantine": schedule}
            with pytest.raises(ValueError, match="attack: " + told.format(worker, honest)):
                phalanx.train(a_model(), some_data(), attack=Mimic(worker=worker), **call)
            phalanx.train(a_model(), some_data(), attack=Mimic(worker=1), **call)
