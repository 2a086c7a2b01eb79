"""What the all-reduce of which both halves are compressed promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.communication import AllGather, AllToAll, ExchangeContext
from phalanx.compression import (
    QSGD,
    Atomo,
    ErrorFeedback,
    ScaledSign,
    SignSGD,
    TensorStates,
    TopK,
    TwoStage,
    UniformQuantization,
    simulate,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(num_workers=st.integers(1, 7), dim=st.integers(0, 30))
def test_where_nothing_is_left_out_it_is_the_mean(num_workers, dim):
    rows = [{"w": normal(dim, seed=worker)} for worker in range(num_workers)]
    means, _ = simulate(TwoStage(TopK(ratio=1.0)), rows, [TensorStates()] * num_workers)
    expected = torch.stack([row["w"] for row in rows]).mean(dim=0)
    assert all(mean["w"].equal(means[0]["w"]) for mean in means)
    torch.testing.assert_close(means[0]["w"], expected)


def test_nothing_is_lost(subtests):
    """What was let through, and both memories, add up to all gradients."""
    for inner in [ScaledSign(), TopK(ratio=0.2), UniformQuantization(bits=2)]:
        for num_workers in [1, 2, 5]:
            with subtests.test(f"{inner}, {num_workers}"):
                compressor, memories = (
                    ErrorFeedback(TwoStage(inner)),
                    [TensorStates()] * num_workers,
                )
                total, passed = torch.zeros(7, 9), torch.zeros(7, 9)
                for step in range(8):
                    rows = [
                        {"w": normal(7, 9, seed=10 * step + worker)}
                        for worker in range(num_workers)
                    ]
                    means, memories = simulate(compressor, rows, memories)
                    total += torch.stack([row["w"] for row in rows]).mean(dim=0)
                    passed += means[0]["w"]
                own = torch.stack([memory.states["w"][0] for memory in memories]).mean(dim=0)
                shares = torch.cat([memory.states["w"][1] for memory in memories])
                assert shares.any() or num_workers == 1
                torch.testing.assert_close(
                    passed + own + shares.view(7, 9), total, rtol=1e-5, atol=1e-5
                )


def test_it_is_what_the_paper_says():
    """Slowly: each worker's chunk of signs and scales, averaged, and signs of that again."""
    rows = [normal(10, seed=worker) for worker in range(3)]
    means, _ = simulate(TwoStage(), [{"w": row} for row in rows], [TensorStates()] * 3)
    found = []
    for start, stop in ((0, 4), (4, 7), (7, 10)):
        mean = sum(row[start:stop].abs().mean() * row[start:stop].sign() for row in rows) / 3
        found.append(mean.abs().mean() * torch.where(mean >= 0, 1.0, -1.0))
    torch.testing.assert_close(means[0]["w"], torch.cat(found))


def test_the_mean_of_many_draws_without_bias_is_the_mean():
    """Buckets of the same four values are draws of the same."""
    rows = [normal(4, seed=worker) for worker in range(3)]
    compressor = TwoStage(QSGD(bucket_size=4, levels=3))
    means, _ = simulate(compressor, [{"w": row.repeat(900)} for row in rows], [TensorStates()] * 3)
    found = means[0]["w"].view(900, 4)
    off = found.mean(dim=0) - torch.stack(rows).mean(dim=0)
    assert (off.abs() <= 4.5 * found.std(dim=0) / 900**0.5).all()


def test_signs_in_two_stages_are_a_vote():
    rows = [
        torch.tensor([3.0, -1.0, 2.0]),
        torch.tensor([1.0, -0.1, -1.0]),
        torch.tensor([-9.0] * 3),
    ]
    compressor = TwoStage(SignSGD(), remember=False)
    means, memories = simulate(compressor, [{"w": row} for row in rows], [TensorStates()] * 3)
    assert means[0]["w"].tolist() == [1, -1, -1]
    assert not memories[0].states


def test_bytes_do_not_grow_with_the_number_of_workers():
    """Beyond the scales, of which there is one a chunk."""
    for num_workers in (2, 8):
        part = ExchangeContext(0, 0, 1, num_workers, ("w",))
        asked = TwoStage().exchange([normal(4096)], [()], part)
        first = next(asked)
        assert isinstance(first, AllToAll)
        assert len(first.tensor) == 4096 // 8 + 4 * num_workers
        own = first.tensor.split(first.lengths)[1]
        second = asked.send([own] * num_workers)
        assert isinstance(second, AllGather)
        assert len(second.tensor) == 4096 // 8 // num_workers + 4


def test_what_does_not_fit_is_refused(subtests):
    for inner in [Atomo(), QSGD(coding="elias-sparse"), ErrorFeedback(ScaledSign())]:
        with (
            subtests.test(f"{inner}"),
            pytest.raises(
                ValueError, match="inner must have messages of a fixed size, and neither"
            ),
        ):
            TwoStage(inner)
