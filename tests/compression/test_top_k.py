"""The fast choice against sorting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.compression import ErrorFeedback, TopK
from phalanx.compression.selection import largest, reached


def slowly(x, count):
    """A stable sort: of equal magnitudes the first."""
    return x.abs().sort(descending=True, stable=True).indices[:count].sort().values


@given(dim=st.integers(1, 300), values=st.integers(1, 20), seed=st.integers(0, 99), data=st.data())
def test_few_values_with_many_ties(dim, values, seed, data):
    x = torch.randint(-values, values + 1, (dim,), generator=torch.Generator().manual_seed(seed))
    count = data.draw(st.integers(1, dim))
    assert torch.equal(largest(x.float(), count), slowly(x.float(), count))


def test_many_values(subtests):
    for ratio in [1e-5, 0.001, 0.05, 0.2]:
        for kind in ["normal", "heavy", "coarse", "periodic", "one place", "zero"]:
            with subtests.test(f"{ratio}, {kind}"):
                dim = 300_001
                x = torch.randn(dim, generator=torch.Generator().manual_seed(0))
                if kind == "heavy":
                    x = x**5
                elif kind == "coarse":
                    x = (2 * x).round()
                elif kind == "periodic":  # the sample sees one phase only
                    x = torch.where(torch.arange(dim) % 4 == 0, x, 100 * x)
                elif kind == "one place":
                    x[:-5000] = 0
                elif kind == "zero":
                    x = torch.zeros(dim)
                count = max(1, round(ratio * dim))
                assert torch.equal(largest(x, count), slowly(x, count))


def test_places_where_a_border_is_reached(subtests):
    for dtype in [torch.float32, torch.bfloat16]:
        with subtests.test(f"{dtype}"):
            values, border = torch.tensor([1, 3, 2, 4], dtype=dtype), torch.tensor(2, dtype=dtype)
            assert reached(values, border).tolist() == [1, 2, 3]
            assert reached(values, border, strictly=True).tolist() == [1, 3]
            assert reached(values, values.flip(0)).tolist() == [1, 3]


def test_all_values_are_sent_as_they_are():
    x = torch.tensor([1.0, -2.0, 0.0])
    assert torch.equal(TopK(ratio=1.0).decode(TopK(ratio=1.0).encode(x)), x)


def test_values_in_halves(subtests):
    """The same positions, values rounded, in two bytes each; and error feedback keeps the rest."""
    for values, off in [("float16", 2.0**-11), ("bfloat16", 2.0**-8)]:
        with subtests.test(f"{values}, {off}"):
            x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
            whole, halves = TopK(ratio=0.1), TopK(ratio=0.1, values=values)
            message = halves.encode(x)
            assert message.num_bytes == whole.encode(x).num_bytes - 2 * 100
            torch.testing.assert_close(
                halves.decode(message), whole.decode(whole.encode(x)), rtol=off, atol=0
            )
            compressor = ErrorFeedback(halves)
            sent, (left,) = compressor.update(x, compressor.init(x))
            assert torch.equal(compressor.decode(sent) + left, x)
            with pytest.raises((ValueError, TypeError), match="values"):
                TopK(values="float8")


def test_shares_are_above_zero(subtests):
    for ratio in [0.0, -1.0, 1.5, float("nan")]:
        with subtests.test(f"{ratio}"), pytest.raises(ValueError, match="ratio must be"):
            TopK(ratio=ratio)


def test_its_text_leaves_out_what_goes_without_saying():
    assert str(ErrorFeedback(TopK())) == "ErrorFeedback(inner=TopK())"
    assert str(TopK(0.1, values="float16")) == "TopK(ratio=0.1, values='float16')"
