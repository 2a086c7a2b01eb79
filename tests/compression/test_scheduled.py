"""The schedule: which round sends how much, what is kept across it, and that it is resumed."""

import pytest
import torch

from phalanx.compression import (
    ErrorFeedback,
    MomentumCorrection,
    PowerSGD,
    Scheduled,
    TensorStates,
    TopK,
    Uncompressed,
    WholeGradient,
    simulate,
)

DGC = Scheduled(ErrorFeedback(TopK(0.001)), warm_up_epochs=4, steps_per_epoch=3)


def rows(step, workers=2):
    return [
        {"w": torch.randn(20, 30, generator=torch.Generator().manual_seed(10 * step + worker))}
        for worker in range(workers)
    ]


def rounds(compressor, steps, memories=None):
    memories, means = memories or [TensorStates()] * 2, []
    for step in range(memories[0].step, steps):
        mean, memories = simulate(compressor, rows(step), memories)
        means.append(mean[0]["w"])
    return means, memories


def test_the_ratio_falls_as_published():
    """A sparsity of 75, 93.75, 98.4375, 99.6 and 99.9 %."""
    ratios = [DGC.at(3 * epoch).inner.ratio for epoch in range(6)]
    assert ratios == pytest.approx([0.25, 0.0625, 0.015625, 0.004, 0.001, 0.001], rel=0.02)
    assert DGC.at(2) == DGC.at(0) != DGC.at(3)
    loose = Scheduled(TopK(0.5), warm_up_epochs=2)
    assert loose.at(0) == TopK(0.5)  # never below the ratio itself


def test_rounds_send_what_the_schedule_says():
    means, _ = rounds(Scheduled(TopK(0.01), 2, warm_up_epochs=2, steps_per_epoch=2), 8)
    kept = [int((one != 0).sum()) for one in means]
    assert kept[:2] == [600, 600]
    assert 150 <= kept[2] <= 300  # two workers, a quarter each
    assert 30 <= kept[4] <= 60
    assert 6 <= kept[6] <= 12


def test_before_the_start_it_is_the_mean_and_afterwards_the_inner_one():
    inner = ErrorFeedback(PowerSGD(rank=1, min_compression=1.0))
    means, _ = rounds(Scheduled(inner, start_step=3), 5)
    for step in range(3):
        mean = torch.stack([row["w"] for row in rows(step)]).mean(dim=0)
        torch.testing.assert_close(means[step], mean)
    late = [TensorStates(step=3)] * 2  # the same randomness
    torch.testing.assert_close(torch.stack(means[3:]), torch.stack(rounds(inner, 5, late)[0]))


def test_nothing_is_lost_across_the_levels(subtests):
    compressors = [
        Scheduled(ErrorFeedback(TopK(0.01)), 1, warm_up_epochs=3, steps_per_epoch=1),
        Scheduled(ErrorFeedback(WholeGradient(TopK(0.01))), warm_up_epochs=3, steps_per_epoch=1),
        ErrorFeedback(Scheduled(TopK(0.01), 1, warm_up_epochs=3, steps_per_epoch=1)),
    ]
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            means, memories = rounds(compressor, 7)
            total = sum(torch.stack([r["w"] for r in rows(step)]).mean(dim=0) for step in range(7))
            left = torch.stack([memory.states["w"][0] for memory in memories]).mean(dim=0)
            torch.testing.assert_close(sum(means) + left, total, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_goes_on_in_its_schedule(tmp_path):
    compressor = Scheduled(MomentumCorrection(TopK(0.01)), 2, warm_up_epochs=2, steps_per_epoch=2)
    straight, _ = rounds(compressor, 8)
    for stop in (1, 3, 5):
        _, memories = rounds(compressor, stop)
        torch.save([one.state_dict() for one in memories], tmp_path / "memory.pt")
        saved = torch.load(tmp_path / "memory.pt", weights_only=True)
        resumed, _ = rounds(compressor, 8, [TensorStates.from_state_dict(one) for one in saved])
        assert all(map(torch.equal, straight[stop:], resumed))


def test_single_messages_say_their_level():
    """As robust rules are given them; whoever reads them has no schedule of the sender."""
    compressor = Scheduled(TopK(0.01), 1, warm_up_epochs=1, steps_per_epoch=1)
    x = rows(0)[0]["w"]
    state, sizes = compressor.init(x), []
    for _ in range(3):
        message, state = compressor.update(x, state)
        received = compressor.from_bytes(message.to_bytes(), (20, 30), torch.float32)
        sizes.append(int((compressor.decode(received) != 0).sum()))
    assert sizes == [600, 150, 6]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="inner must have a ratio for a warm-up"):
        Scheduled(ErrorFeedback(PowerSGD()), warm_up_epochs=2)
    for name, value in (("start_step", -1), ("steps_per_epoch", 0), ("first_ratio", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            Scheduled(Uncompressed(), **{name: value})
