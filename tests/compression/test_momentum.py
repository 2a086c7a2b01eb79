"""What the compressors with momentum promise."""

import pytest
import torch

from phalanx.compression import (
    QSGD,
    ErrorFeedback,
    MomentumCorrection,
    ScaledSign,
    SignSGD,
    Signum,
    TensorStates,
    TopK,
    simulate,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounds(compressor, steps=6, num_workers=3, dim=40):
    """Means of several rounds, all gradients, and the last memories."""
    memories, means = [TensorStates()] * num_workers, []
    rows = [
        [normal(dim, seed=10 * step + worker) for worker in range(num_workers)]
        for step in range(steps)
    ]
    for row in rows:
        mean, memories = simulate(compressor, [{"w": x} for x in row], memories)
        means.append(mean[0]["w"])
    return torch.stack(means), torch.stack([torch.stack(row) for row in rows]), memories


def test_without_momentum_it_is_error_feedback(subtests):
    for inner in [TopK(ratio=0.1), ScaledSign()]:
        with subtests.test(f"{inner}"):
            ours, _, _ = rounds(MomentumCorrection(inner, momentum=0.0))
            assert ours.equal(rounds(ErrorFeedback(inner))[0])


def test_where_all_is_sent_it_is_the_momentum_of_the_optimizer():
    ours, rows, _ = rounds(MomentumCorrection(TopK(ratio=1.0), masking=False))
    weight = torch.nn.Parameter(torch.zeros(40))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    for row in rows:
        weight.grad = row.mean(dim=0)
        optimizer.step()
    torch.testing.assert_close(-ours.sum(dim=0), weight.detach(), rtol=1e-5, atol=1e-5)


def test_what_was_sent_and_what_is_left_add_up_to_the_momenta():
    ours, rows, memories = rounds(MomentumCorrection(TopK(ratio=0.1), masking=False))
    velocity, total = torch.zeros(40), torch.zeros(40)
    for row in rows:
        velocity = 0.9 * velocity + row.mean(dim=0)
        total += velocity
    left = torch.stack([memory.states["w"][1] for memory in memories]).mean(dim=0)
    torch.testing.assert_close(ours.sum(dim=0) + left, total, rtol=1e-5, atol=1e-5)


def test_what_was_sent_begins_again_without_momentum():
    _, _, (memory,) = rounds(MomentumCorrection(TopK(ratio=0.1)), num_workers=1)
    velocity, left = memory.states["w"]
    assert ((velocity == 0) == (left == 0)).all()
    assert (velocity == 0).sum() == 4


def test_workers_cut_their_gradients_down_to_their_share():
    """Together, over all tensors: to the norm over the root of the number of workers."""
    rows = [{"w": normal(20, seed=seed), "b": 9 * normal(3, seed=seed)} for seed in range(4)]
    compressor = MomentumCorrection(TopK(ratio=1.0), momentum=0.0, clip=2.0)
    means, _ = simulate(compressor, rows, [TensorStates()] * 4)
    for name in ("w", "b"):
        shares = [row[name] / torch.cat(list(row.values())).norm() for row in rows]
        torch.testing.assert_close(means[0][name], torch.stack(shares).mean(dim=0))


def test_what_is_small_enough_is_not_cut_down():
    clipped, _, _ = rounds(MomentumCorrection(TopK(ratio=0.1), clip=1e6))
    assert clipped.equal(rounds(MomentumCorrection(TopK(ratio=0.1)))[0])
    with pytest.raises(ValueError, match="clip must be above 0"):
        MomentumCorrection(clip=0.0)


def test_signs_are_those_of_the_average_over_time():
    ours, rows, _ = rounds(Signum(momentum=0.8), num_workers=1)
    momentum = torch.zeros(40)
    for mean, row in zip(ours, rows, strict=True):
        momentum = 0.8 * momentum + 0.2 * row[0]
        assert mean.equal(momentum.sign())


def test_without_momentum_signum_is_sign_sgd():
    assert rounds(Signum(momentum=0.0))[0].equal(rounds(SignSGD())[0])


def test_small_numbers_keep_their_sign_in_halves():
    x = torch.full((3,), -6e-8, dtype=torch.float16)
    message, _ = Signum(momentum=0.9).update(x, Signum().init(x))
    assert Signum().decode(message).tolist() == [-1, -1, -1]


def test_momentum_that_is_no_share_is_refused(subtests):
    for momentum in [-0.1, 1.0, float("nan")]:
        for compressor in [Signum, MomentumCorrection]:
            with (
                subtests.test(f"{momentum}, {compressor}"),
                pytest.raises(ValueError, match="momentum must be at least 0 and below 1, got"),
            ):
                compressor(momentum=momentum)


def test_what_has_no_bias_is_refused():
    with pytest.raises(ValueError, match="inner must be a biased compressor"):
        MomentumCorrection(QSGD())


def share_of_right_votes(compressor, num_workers=9, liars=4, steps=30):
    """Gradients are one and noise as large; liars send the opposite."""
    memories, right = [TensorStates()] * num_workers, []
    for step in range(steps):
        rows = [1 + normal(200, seed=100 * step + worker) for worker in range(num_workers)]
        rows = [{"w": -row if worker < liars else row} for worker, row in enumerate(rows)]
        means, memories = simulate(compressor, rows, memories)
        right.append((means[0]["w"] == 1).float().mean())
    return torch.stack(right[steps // 2 :]).mean()


def test_a_vote_on_momenta_survives_four_liars_of_nine_and_noise():
    assert share_of_right_votes(Signum()) > 0.99
    assert share_of_right_votes(SignSGD()) < 0.8
