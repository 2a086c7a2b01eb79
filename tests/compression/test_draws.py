"""Cheap uniform draws."""

import torch

from phalanx.compression.draws import Uniforms

COUNT = 40_000


def draws(dtype=torch.float32, seed=0):
    return Uniforms(dtype, torch.Generator().manual_seed(seed))


def test_draws_are_uniform(subtests):
    for dtype, bits in [(torch.float32, 24), (torch.float64, 53)]:
        with subtests.test(f"{dtype}, {bits}"):
            found = draws(dtype).take(COUNT).double()
            assert ((found >= 0) & (found < 1)).all()
            assert torch.equal((found * 2.0**bits).floor(), found * 2.0**bits)
            counts = torch.histc(found, 64, 0, 1)
            expected = COUNT / 64
            assert (
                (counts - expected).square() / expected
            ).sum() < 63 + 5 * 126**0.5  # chi squared
            neighbours = (found[1:] - 0.5) * (found[:-1] - 0.5)
            assert neighbours.mean().abs() < 5 / 12 / COUNT**0.5


def test_the_bits_that_a_sequence_shares_are_uniform_over_sequences():
    """What is below the sixteen bits is one number a sequence: it, too, has to be uniform."""
    low = torch.stack([draws(torch.float64, seed).take(1)[0] for seed in range(2000)])
    fine = (low * 2.0**16) % 1
    assert (fine.mean() - 0.5).abs() < 5 * (1 / 12 / 2000) ** 0.5
    assert torch.histc(fine, 8, 0, 1).min() > 180


def test_pieces_are_those_of_the_whole():
    whole, again = draws().take(COUNT), draws()
    room = torch.empty(1000)
    for start in range(0, COUNT, 1000):
        assert torch.equal(again.take(1000, room), whole[start : start + 1000])
    assert not torch.equal(draws(seed=1).take(COUNT), whole)
