"""QSGD's codings and its published bounds."""

import math

import pytest
import torch

from phalanx.compression import QSGD


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(x, seed=0, **fields):
    compressor = QSGD(**fields)
    message = compressor.encode(x, torch.Generator().manual_seed(seed))
    return message, compressor.decode(message)


@pytest.mark.parametrize("coding", ["elias-sparse", "elias-dense", "auto"])
def test_codings_differ_in_bytes_alone(coding, subtests):
    for integers in ["omega", "gamma"]:
        for levels in [1, 4, 127]:
            with subtests.test(f"{integers}, {levels}"):
                x = normal(1001)
                _, plain = encoded(x, levels=levels)
                _, found = encoded(x, levels=levels, coding=coding, integers=integers)
                assert torch.equal(plain, found)


def test_values_that_are_not_zero(subtests):
    """At most s (s + sqrt(d)) in expectation, and all on the grid."""
    for levels in [1, 3, 7]:
        with subtests.test(f"{levels}"):
            x = normal(512)
            counts = []
            for seed in range(50):
                _, found = encoded(x, seed, levels=levels)
                heights = found / x.norm() * levels
                torch.testing.assert_close(heights, heights.round(), rtol=0, atol=1e-5)
                assert (found.abs() <= x.norm() * (1 + 1e-6)).all()
                counts.append(int(found.count_nonzero()))
            assert sum(counts) / 50 <= levels * (levels + math.sqrt(512))


def test_one_level_in_a_sparse_code_is_as_short_as_published():
    """(3 + 3/2 log2(2 (s^2 + d) / (s (s + sqrt d)))) s (s + sqrt d) + 32 bits, to leading order."""
    dim = 2**14
    message, _ = encoded(normal(dim), levels=1, bucket_size=dim, coding="elias-sparse")
    number = 1 + math.sqrt(dim)
    assert 8 * message.num_bytes <= (3 + 1.5 * math.log2(2 * (1 + dim) / number)) * number + 250


def test_many_levels_in_a_dense_code_are_as_short_as_published():
    """About 2.8 d + 32 bits with sqrt(d) levels; Gaussian values take just below 3 d here."""
    dim = 64**2
    message, _ = encoded(normal(dim), levels=64, bucket_size=dim, coding="elias-dense")
    assert 8 * message.num_bytes <= 3 * dim + 32 + 8 * 16


@pytest.mark.parametrize("integers", ["omega", "gamma"])
def test_the_shortest_coding_is_found(integers, subtests):
    """But for five bytes, and for guessing: gaps are taken to be random."""
    for levels in [1, 2, 7, 30, 127]:
        for kind in ["normal", "heavy", "zero", "patches"]:
            with subtests.test(f"{levels}, {kind}"):
                x = normal(5000) if kind != "heavy" else normal(5000) ** 5
                if kind == "zero":
                    x = torch.zeros(5000)
                if kind == "patches":
                    x[torch.arange(5000) % 500 > 10] = 0
                lengths = {
                    coding: encoded(x, levels=levels, coding=coding, integers=integers)[0].num_bytes
                    for coding in ("fixed", "elias-sparse", "elias-dense", "auto")
                }
                found = lengths.pop("auto")
                assert found <= lengths["fixed"] + 5
                assert found <= 1.1 * min(lengths.values()) + 30


def test_codings_are_named():
    with pytest.raises((ValueError, TypeError), match="coding"):
        QSGD(coding="elias")
    with pytest.raises((ValueError, TypeError), match="integers"):
        QSGD(integers="delta")
