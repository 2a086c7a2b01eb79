"""Each attack on an example of three honest workers and three coordinates, by hand."""

import pytest
import torch

from phalanx.attacks import (
    Constant,
    Delay,
    GaussianNoise,
    NotFinite,
    ReverseGradient,
    SignFlip,
    WrongShape,
)

HONEST = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 6.0, 9.0]])
OWN = torch.tensor([[1.0, 0.0, -2.0]])


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (ReverseGradient(), [-100.0, 0.0, 200.0]),
        (ReverseGradient(scale=0.5), [-0.5, 0.0, 1.0]),
        (Constant(), [-100.0, -100.0, -100.0]),
        (SignFlip(), [-1.0, 0.0, 2.0]),
        (Delay(), [1.0, 0.0, -2.0]),
        (GaussianNoise(mean=4.0, standard_deviation=0.0), [4.0, 4.0, 4.0]),
        (NotFinite("inf"), [float("inf")] * 3),
        (NotFinite("-inf"), [-float("inf")] * 3),
        (WrongShape(extra=2), [1.0, 0.0, -2.0, 0.0, 0.0]),
        (WrongShape(extra=-2), [1.0]),
        (WrongShape(extra=-9), []),
    ],
    ids=repr,
)
def test_of_its_own_message(attack, message):
    assert attack(HONEST, 1, own=OWN).tolist() == [message]


def test_without_its_own_message_a_bad_worker_starts_from_the_honest_mean():
    assert SignFlip()(HONEST, 2).tolist() == [[-2.0, -4.0, -6.0]] * 2


def test_nan():
    assert NotFinite()(HONEST, 1).isnan().all()


def test_gaussian_moments_and_a_fresh_draw_for_each_worker():
    noise = GaussianNoise(mean=-3.0, standard_deviation=2.0)
    one, other = noise(torch.zeros(1, 40_000), 2, generator=torch.Generator().manual_seed(0))
    assert one.mean().item() == pytest.approx(-3.0, abs=0.05)
    assert one.std().item() == pytest.approx(2.0, abs=0.05)
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 0.02


def test_an_engine_learns_of_the_delay():
    assert Delay(delay_s=2.5).delay_s == 2.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Delay(delay_s=-1.0), "delay_s must be finite and at least 0, got -1.0"),
        (lambda: Delay(delay_s=float("nan")), "delay_s must be finite and at least 0, got nan"),
        (lambda: GaussianNoise(standard_deviation=-1.0), "standard_deviation must be finite"),
        (lambda: WrongShape(extra=0), "extra must not be 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
