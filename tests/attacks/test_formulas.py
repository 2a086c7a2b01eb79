"""Each attack on an example of three honest workers and three coordinates, by hand."""

import pytest
import torch

from phalanx.attacks import (
    Constant,
    Delay,
    Drop,
    GaussianNoise,
    InnerProductManipulation,
    LabelFlip,
    LocalModelPoisoning,
    MinMax,
    MinSum,
    NotFinite,
    ReverseGradient,
    SignFlip,
    StaleGradient,
    WrongShape,
    Zero,
)

HONEST = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 6.0, 9.0]])
OWN = torch.tensor([[1.0, 0.0, -2.0]])


OF_ITS_OWN = [
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
    (Zero(), [0.0, 0.0, 0.0]),
    (Drop(probability=0.0), [1.0, 0.0, -2.0]),
    (Drop(probability=1.0), [0.0, 0.0, 0.0]),
    (StaleGradient(), [1.0, 0.0, -2.0]),
    (LabelFlip(), [1.0, 0.0, -2.0]),
]
OF_HONEST_ONES = [
    (InnerProductManipulation(epsilon=0.5), [-1.0, -2.0, -3.0]),
    (InnerProductManipulation(epsilon=-2.0), [4.0, 8.0, 12.0]),
    (MinMax(), [1.0, 2.0, 3.0]),  # the mean is one standard deviation from the farthest
    (MinSum(), [1.0, 2.0, 3.0]),
]


def test_of_its_own_message(subtests):
    for attack, message in OF_ITS_OWN:
        with subtests.test(repr(attack)):
            assert attack(HONEST, 1, own=OWN).tolist() == [message]


def test_of_the_honest_messages(subtests):
    for attack, message in OF_HONEST_ONES:
        with subtests.test(repr(attack)):
            forged = attack(HONEST, 2, own=OWN.expand(2, -1))
            torch.testing.assert_close(forged, torch.tensor([message] * 2))


def test_beyond_the_edge_against_the_sign_of_the_mean():
    # Smallest and largest: 1 and 4, -6 and 1, -1 and 4, -8 and -2, -3 and 3.
    honest = torch.tensor(
        [[1.0, -6.0, -1.0, -8.0, -3.0], [2.0, 1.0, 4.0, -2.0, 0.0], [4.0, 1.0, 0.0, -5.0, 3.0]]
    )
    near = torch.tensor([1.0, 1.0, -1.0, -2.0, -3.0])
    far = torch.tensor([0.25, 4.0, -4.0, -0.5, -12.0])
    low, high = torch.minimum(near, far), torch.maximum(near, far)
    source = torch.Generator().manual_seed(0)
    forged = LocalModelPoisoning(factor=4.0)(honest, 1000, generator=source)
    assert (low <= forged).all()
    assert (forged <= high).all()
    torch.testing.assert_close(forged.mean(dim=0), (near + far) / 2, rtol=0.05, atol=0)
    assert len(forged.unique(dim=0)) == 1000


def test_the_chance_of_a_hole():
    source = torch.Generator().manual_seed(0)
    one, other = Drop(probability=0.3)(torch.ones(1, 40_000), 2, generator=source)
    assert one.mean().item() == pytest.approx(0.7, abs=0.01)
    assert (one * other).mean().item() == pytest.approx(0.49, abs=0.01)


def test_flipped_labels(subtests):
    for num_classes in (2, 3, 10):
        with subtests.test(num_classes=num_classes):
            targets = torch.arange(num_classes)
            flipped = LabelFlip().relabel(targets, num_classes)
            assert flipped.tolist() == list(range(num_classes))[::-1]
            assert LabelFlip().relabel(flipped, num_classes).equal(targets)
    for targets, num_classes in ((torch.zeros(3), 2), (torch.tensor([0]), 1)):
        with (
            subtests.test(targets=targets, num_classes=num_classes),
            pytest.raises(ValueError, match="targets must be whole numbers of at least 2 classes"),
        ):
            LabelFlip().relabel(targets, num_classes)


def test_without_its_own_message_a_worker_starts_from_the_honest_mean():
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


def test_bad_arguments_are_named(subtests):
    for make, message in (
        (lambda: Delay(delay_s=-1.0), "delay_s must be finite and at least 0, got -1.0"),
        (lambda: Delay(delay_s=float("nan")), "delay_s must be finite and at least 0, got nan"),
        (lambda: GaussianNoise(standard_deviation=-1.0), "standard_deviation must be finite"),
        (lambda: WrongShape(extra=0), "extra must not be 0"),
        (lambda: Drop(probability=1.5), r"probability must be in \[0, 1\], got 1.5"),
        (lambda: StaleGradient(rounds=0), "rounds must be at least 1, got 0"),
        (lambda: LocalModelPoisoning(factor=1.0), "factor must be finite and above 1, got 1.0"),
        (
            lambda: InnerProductManipulation(epsilon=float("inf")),
            "epsilon must be finite, got inf",
        ),
    ):
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make()
