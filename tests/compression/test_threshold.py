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


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("power", [1, 5])
def test_about_as_many_as_wanted_are_kept_and_these_are_the_largest(ratio, power):
    x = torch.randn(200_001, generator=torch.Generator().manual_seed(0)) ** power
    found = decoded(SampledTopK(ratio), x)
    kept = found != 0
    assert 0.7 * ratio * len(x) <= int(kept.sum()) <= 1.4 * ratio * len(x)
    assert torch.equal(found[kept], x[kept])
    assert x[kept].abs().min() >= x[~kept].abs().max()


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_equal_values(value):
    x = torch.full((1000,), value)
    assert torch.equal(decoded(SampledTopK(0.01), x), x)


@pytest.mark.parametrize("bad", [-1.0, float("inf"), float("nan")])
def test_thresholds_are_finite(bad):
    with pytest.raises(ValueError, match="threshold must be"):
        Threshold(bad)


@pytest.mark.parametrize("bad", [0.0, 1.5])
def test_samples_are_shares(bad):
    with pytest.raises(ValueError, match="sample must be"):
        SampledTopK(sample=bad)
