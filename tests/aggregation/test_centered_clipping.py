import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.aggregation import CenteredClipping, Mean, weigh_distances


def random(num_workers, dim, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_workers, dim, generator=generator, dtype=dtype)


def by_hand(rows, centre, radius, iterations):
    for _ in range(iterations):
        offsets = rows - centre
        norms = offsets.norm(dim=1)
        cut = norms.median() if radius is None else radius
        centre = centre + (offsets * (cut / norms).clamp(max=1)[:, None]).mean(dim=0)
    return centre


def test_is_what_the_definition_says_round_after_round(subtests):
    for radius, iterations, dim in itertools.product(
        [0.1, 2.0, 1e9, None], [1, 3, 10], [6, 20_000]
    ):
        with subtests.test(radius=radius, iterations=iterations, dim=dim):
            rule = CenteredClipping(radius, iterations)
            state = rule.init(dim, dtype=torch.float64)
            centre = torch.zeros(dim, dtype=torch.float64)
            for seed in range(3):
                rows = random(7, dim, seed) + 3
                centre = by_hand(rows, centre, radius, iterations)
                answer, state = rule.update(rows, state)
                torch.testing.assert_close(answer.value, centre)
                assert torch.equal(state[0], answer.value)


def test_a_huge_lie_does_not_drown_the_others(subtests):
    for lie in [1e6, 1e30]:
        with subtests.test(lie=lie):
            rows = random(9, 20_000, dtype=torch.float32) + 1e3
            rows[4] *= lie
            rule = CenteredClipping(radius=50.0, iterations=20)
            answer, _ = rule.update(rows, (rows[0].clone(),))
            exact = by_hand(rows.double(), rows[0].double(), 50.0, 20)
            assert (answer.value - exact).norm() < 1e-5 * exact.norm()
            assert answer.suspects[4]


@given(
    seed=st.integers(0, 2**32 - 1),
    radius=st.floats(1e-3, 1e3),
    lie=st.sampled_from([-1e10, -3.0, 0.0, 2.0, 1e30]),
)
def test_one_step_moves_by_the_radius_and_a_liar_by_its_share_of_it(seed, radius, lie):
    rows, centre = random(7, 5, seed), random(1, 5, seed + 1)[0]
    rule = CenteredClipping(radius)
    value = rule.update(rows, (centre,))[0].value
    assert (value - centre).norm() <= radius * (1 + 1e-9)
    without = rows.clone()
    without[0] = centre  # who agrees with the centre does not pull
    rows[0] *= lie
    moved = rule.update(rows, (centre,))[0].value - rule.update(without, (centre,))[0].value
    assert moved.norm() <= radius / 7 * (1 + 1e-9)


def test_with_an_infinite_radius_it_is_the_mean():
    rows = random(7, 20)
    answer, _ = CenteredClipping(radius=torch.inf).update(rows, (random(1, 20, 5)[0],))
    torch.testing.assert_close(answer.value, Mean()(rows))


def test_no_minority_can_blow_up_the_automatic_radius():
    rows = random(7, 20)
    rows[:3] *= 1e30
    answer, _ = CenteredClipping().update(rows, (torch.zeros(20, dtype=torch.float64),))
    assert answer.value.norm() <= rows[3:].norm(dim=1).max()


def test_many_rounds_forget_a_bad_start():
    rule = CenteredClipping(radius=1.0)
    rows = random(9, 30) + 5
    rows[:2] = -1e6
    state = rule.init(30, dtype=torch.float64)
    for _ in range(200):
        answer, state = rule.update(rows, state)
    assert (answer.value - rows[2:].mean(dim=0)).norm() < 3


def test_the_state_follows_device_and_dtype_of_the_messages():
    rule = CenteredClipping()
    rows = random(5, 4).to(torch.bfloat16)
    answer, state = rule.update(rows, rule.init(4))
    assert answer.value.dtype == state[0].dtype == torch.bfloat16


def test_arguments_are_checked(subtests):
    for field in [{"radius": 0.0}, {"radius": torch.nan}, {"iterations": 0}]:
        rule = f"{next(iter(field))} must be"
        with subtests.test(field=field), pytest.raises(ValueError, match=rule):
            CenteredClipping(**field)


def test_from_the_medoid_is_what_the_definition_says(subtests):
    """And needs distances alone, which the weights prove: they sum to one."""
    for radius, iterations, seed in itertools.product([0.1, 2.0, 1e9, None], [1, 3], range(3)):
        with subtests.test(radius=radius, iterations=iterations, seed=seed):
            rows = random(7, 6, seed) + 3
            near = (
                torch.cdist(rows, rows).sort(dim=1).values[:, 3]
            )  # of more than half, with itself
            rule = CenteredClipping(radius, iterations, start="medoid")
            answer = rule.explain(rows)
            expected = by_hand(rows, rows[near.argmin()], radius, iterations)
            torch.testing.assert_close(answer.value, expected)
            assert answer.weights.sum().item() == pytest.approx(1)
            assert rule.init(6) == ()
            moved, _ = weigh_distances(rule, torch.cdist(rows, rows).square(), 3, ())
            torch.testing.assert_close(moved.weights, answer.weights)


def test_the_medoid_is_near_the_honest_ones_whoever_lies():
    """Within twice their diameter, though three of seven agree on a place far away."""
    for seed, distance in itertools.product(range(5), [0.5, 3.0, 1e6]):
        rows = random(7, 4, seed)
        rows[4:] = rows[0] + distance
        diameter = torch.cdist(rows[:4], rows[:4]).max()
        start = CenteredClipping(1e-12, start="medoid")(rows)
        assert (rows[:4] - start).norm(dim=1).max() <= 2 * diameter + 1e-9
