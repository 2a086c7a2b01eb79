"""Values above a threshold, given or guessed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.compression import SampledTopK, Threshold


def decoded(compressor, x):
    return compressor.decode(compressor.encode(x))


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=50), st.floats(0, 10, width=32))
def test_what_reaches_the_threshold_is_kept(values, threshold):
    x = torch.tensor(values)
    expected = [value if abs(value) >= threshold else 0.0 for value in values]
    assert decoded(Threshold(threshold), x).tolist() == expected


def test_about_as_many_as_wanted_are_kept_and_these_are_the_largest(subtests):
    for ratio in [0.001, 0.01, 0.1]:
        for power in [1, 5]:
            with subtests.test(f"{ratio}, {power}"):
                x = torch.randn(200_001, generator=torch.Generator().manual_seed(0)) ** power
                found = decoded(SampledTopK(ratio), x)
                kept = found != 0
                assert 0.7 * ratio * len(x) <= int(kept.sum()) <= 1.4 * ratio * len(x)
                assert torch.equal(found[kept], x[kept])
                assert x[kept].abs().min() >= x[~kept].abs().max()


def test_equal_values(subtests):
    for value in [0.0, 2.0]:
        with subtests.test(f"{value}"):
            x = torch.full((1000,), value)
            assert torch.equal(decoded(SampledTopK(0.01), x), x)


def test_thresholds_are_finite(subtests):
    for bad in [-1.0, float("inf"), float("nan")]:
        with subtests.test(f"{bad}"), pytest.raises(ValueError, match="threshold must be"):
            Threshold(bad)


def test_samples_are_shares(subtests):
    for bad in [0.0, 1.5]:
        with subtests.test(f"{bad}"), pytest.raises(ValueError, match="sample must be"):
            SampledTopK(sample=bad)
