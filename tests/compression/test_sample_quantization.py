"""Grids of a sample's own: the levels, the bytes, the errors, and that nothing leaks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.compression import SampleQuantization
from phalanx.errors import WireError
from phalanx.pipeline import ActivationDifference

BITS = [2, 3, 4, 6, 8]
shapes = st.sampled_from([(1, 1), (3, 5), (2, 3, 7), (4, 16)])


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def slow(x, bits):
    """The nearest of 2^bits levels, one number at a time."""
    top, steps = max(map(abs, x)), 2**bits - 1
    if not top:
        return x
    grid = [top * (2 * level / steps - 1) for level in range(steps + 1)]
    return [min(grid, key=lambda level: abs(level - value)) for value in x]


@given(shape=shapes, bits=st.sampled_from(BITS), seed=st.integers(0, 99))
def test_levels_are_those_of_a_slow_reference(shape, bits, seed):
    x = torch.randn(shape, generator=source(seed))
    codec = SampleQuantization(bits)
    decoded = codec.decode(codec.encode(x))
    for row, found in zip(x.flatten(1).tolist(), decoded.flatten(1).tolist(), strict=True):
        assert found == pytest.approx(slow(row, bits), abs=1e-5)


@given(
    shape=shapes,
    bits=st.sampled_from([*BITS, 32]),
    scale=st.sampled_from(["sample", "token"]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
)
def test_bytes_are_levels_and_scales(shape, bits, scale, rounding):
    codec = SampleQuantization(bits, rounding, scale)
    x = torch.randn(shape, generator=source())
    message = codec.encode(x, source())
    scales = shape[0] if scale == "sample" else math.prod(shape[:-1])
    expected = 4 * x.numel() if bits == 32 else math.ceil(bits * x.numel() / 8) + 4 * scales
    assert message.num_bytes == len(message.to_bytes()) == expected
    back = codec.from_bytes(message.to_bytes(), shape, torch.float32)
    assert codec.decode(back).equal(codec.decode(message))
    with pytest.raises(WireError):
        codec.from_bytes(message.to_bytes()[:-1], shape, torch.float32)


@given(shape=shapes, bits=st.sampled_from(BITS), scale=st.sampled_from(["sample", "token"]))
def test_a_sample_does_not_depend_on_its_company(shape, bits, scale):
    codec = SampleQuantization(bits, scale=scale)
    x = torch.randn(shape, generator=source())
    together = codec.decode(codec.encode(x))
    for place in range(len(x)):
        alone = codec.decode(codec.encode(x[place : place + 1]))
        assert together[place : place + 1].equal(alone)


def test_stochastic_rounding_is_right_on_average(subtests):
    for bits in [2, 3, 4]:
        with subtests.test(f"{bits}"):
            codec = SampleQuantization(bits, "stochastic")
            x = torch.randn(1, 50, generator=source())
            draws = torch.cat([codec.decode(codec.encode(x, source(seed))) for seed in range(400)])
            deviation = draws.std(dim=0) / 20
            assert ((draws.mean(dim=0) - x[0]).abs() <= 5 * deviation + 1e-6).all()
            with pytest.raises(ValueError, match="generator must be given"):
                codec.encode(x)


@settings(max_examples=15)
@given(shape=shapes, bits=st.sampled_from(BITS), seed=st.integers(0, 9))
def test_bounds_hold(shape, bits, seed):
    x = torch.randn(1, math.prod(shape), generator=source(seed))
    codec, dim = SampleQuantization(bits), x.numel()
    left = ((codec.decode(codec.encode(x)) - x).norm() / x.norm()) ** 2
    if delta := codec.contraction(dim):
        assert left <= 1 - delta + 1e-6
    codec = SampleQuantization(bits, "stochastic")
    errors = [(codec.decode(codec.encode(x, source(draw))) - x).norm() ** 2 for draw in range(20)]
    assert sum(errors) / 20 <= codec.variance_bound(dim) * x.norm() ** 2 * 1.5 + 1e-6


def test_what_32_bits_send_is_what_was_there():
    x = torch.randn(3, 4, generator=source()).to(torch.bfloat16)
    codec = SampleQuantization(32, "stochastic")
    assert codec.decode(codec.encode(x)).equal(x)
    assert codec.unbiased
    assert codec.contraction(9) == 1.0
    assert codec.variance_bound(9) == 0.0


def test_what_does_not_exist_is_refused(subtests):
    for kind in [SampleQuantization, ActivationDifference]:
        for field, value, rule in [
            ("bits", 1, "bits must be from 2 to 8, or 32, got 1"),
            ("bits", 9, "bits must be from 2 to 8, or 32, got 9"),
        ]:
            with (
                subtests.test(f"{kind}, {field}, {value}, {rule}"),
                pytest.raises(ValueError, match=rule),
            ):
                kind(**{field: value})


@settings(max_examples=10)
@given(bits=st.sampled_from([2, 3, 4]), seed=st.integers(0, 50))
def test_differences_close_in_by_the_quantiser_s_factor(bits, seed):
    """The largest error of a sample is at most half a level: `1 / (2^bits - 1)` of the last."""
    method = ActivationDifference(bits)
    activations = torch.randn(3, 20, generator=source(seed)).double()
    remembered = torch.zeros_like(activations)
    for _ in range(60):
        before = (activations - remembered).abs().amax(dim=1)
        message = method.encode(activations, remembered)
        remembered = method.decode(message, remembered)
        after = (activations - remembered).abs().amax(dim=1)
        assert (after <= before / (2**bits - 1) + 1e-15).all()
    assert after.max() < 1e-14
