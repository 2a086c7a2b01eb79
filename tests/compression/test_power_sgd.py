"""What PowerSGD promises beyond the laws."""

import pytest
import torch

from phalanx.communication import AllReduce, ExchangeContext
from phalanx.compression import ErrorFeedback, PowerSGD, TensorStates, simulate


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounds(compressor, rows, steps):
    """Means of round after round on the same gradients, and the last memories."""
    memories, means = [TensorStates()] * len(rows), []
    for _ in range(steps):
        mean, memories = simulate(compressor, [{"w": row} for row in rows], memories)
        means.append(mean[0]["w"])
    return means, memories


def test_many_workers_are_one_with_the_mean(subtests):
    for error in ["aggregate", "local"]:
        with subtests.test(f"{error}"):
            rows = [normal(12, 40, seed=seed) for seed in range(5)]
            compressor = ErrorFeedback(PowerSGD(rank=2, min_compression=1.0, error=error))
            many, _ = rounds(compressor, rows, 4)
            one, _ = rounds(compressor, [torch.stack(rows).mean(dim=0)], 4)
            torch.testing.assert_close(torch.stack(many), torch.stack(one), rtol=1e-4, atol=1e-5)


def test_errors_are_what_the_mean_lacks(subtests):
    for error in ["aggregate", "local"]:
        with subtests.test(f"{error}"):
            rows = [normal(12, 40, seed=seed) for seed in range(5)]
            compressor = ErrorFeedback(PowerSGD(rank=2, error=error))
            means, memories = rounds(compressor, rows, 1)
            left = torch.stack([memory.states["w"][0] for memory in memories]).mean(dim=0)
            torch.testing.assert_close(left + means[0], torch.stack(rows).mean(dim=0))


def test_a_mean_of_low_rank_is_exact():
    rows = [normal(12, 2) @ normal(2, 40, seed=seed) for seed in range(3)]
    means, _ = rounds(PowerSGD(rank=2), rows, 1)
    torch.testing.assert_close(means[0], torch.stack(rows).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_rounds_on_one_matrix_find_its_best_approximation():
    matrix = normal(12, 12).double()
    left, _, right = torch.linalg.svd(matrix)
    values = torch.tensor([10.0, 8.0, 2.0] + [1.0] * 9, dtype=torch.float64)
    matrix = (left * values) @ right
    means, _ = rounds(PowerSGD(rank=2, min_compression=1.0), [matrix], 50)
    assert (means[-1] - matrix).norm() / values[2:].norm() == pytest.approx(1, abs=1e-3)


def test_error_feedback_sends_all_of_a_constant_matrix_in_time():
    matrix = normal(12, 40)
    means, _ = rounds(ErrorFeedback(PowerSGD(rank=1)), [matrix], 80)
    off = [
        (torch.stack(means[:steps]).mean(dim=0) - matrix).norm() / matrix.norm()
        for steps in (20, 80)
    ]
    assert off[1] < 0.35 * off[0]


def test_a_zero_matrix_between_others():
    rows = [normal(12, 40), torch.zeros(12, 40), normal(12, 40)]
    memories = [TensorStates()]
    for row in rows:
        means, memories = simulate(PowerSGD(rank=2), [{"w": row}], memories)
        assert means[0]["w"].isfinite().all()
        assert means[0]["w"].any() == row.any()


def test_vectors_and_small_matrices_are_sent_as_they_are():
    rows = [{"bias": normal(30, seed=seed), "small": normal(3, 4, seed=seed)} for seed in range(2)]
    means, _ = simulate(PowerSGD(), rows, [TensorStates()] * 2)
    for name in rows[0]:
        mean = torch.stack([row[name] for row in rows]).mean(dim=0)
        torch.testing.assert_close(means[0][name], mean)


def test_numbers_that_travel_for_a_residual_network(subtests):
    """ResNet-18 for 32 x 32 images: its published compression is 243, 136, 72 and 42 times."""
    for rank, numbers in [(1, 45_935), (2, 82_260), (4, 154_910), (7, 263_885)]:
        with subtests.test(f"{rank}, {numbers}"):
            from phalanx.models import ResNet18

            shapes = [tuple(x.shape) for x in ResNet18((3, 32, 32), 10).parameters()]
            layouts = [
                PowerSGD(rank, min_compression=1.0).layout(one, torch.float32) for one in shapes
            ]
            assert sum(part.most for layout in layouts for part in layout) == numbers


def alternating_reference(rows, rank, iterations, rounds, start, local):
    """The algorithm in NumPy's manner: every worker's rest, one product an iteration."""
    factor, right, means = start, True, []
    memories = [torch.zeros_like(row) for row in rows]
    for _ in range(rounds):
        rests = [row + memory for row, memory in zip(rows, memories, strict=True)]
        total = torch.zeros_like(rows[0])
        for _ in range(iterations):
            basis = torch.linalg.qr(factor).Q
            products = [rest @ basis if right else rest.T @ basis for rest in rests]
            factor = sum(products) / len(rows)
            parts = [one @ basis.T if right else basis @ one.T for one in [factor, *products]]
            total = total + parts[0]
            rests = [
                rest - (part if local else parts[0])
                for rest, part in zip(rests, parts[1:], strict=True)
            ]
            right = not right
        memories = rests
        means.append(total)
    return means, memories


def test_the_alternating_variant_is_its_reference(subtests):
    rows = [normal(12, 40, seed=seed).double() for seed in range(3)]
    for iterations in (1, 2, 3):
        for error in ("aggregate", "local"):
            with subtests.test(f"{iterations}, {error}"):
                compressor = PowerSGD(
                    2, 1.0, error=error, variant="alternating", iterations=iterations
                )
                context = ExchangeContext(0, 0, 0, 3, ("w",))
                start = torch.randn(40, 2, generator=context.generator(0, shared=True)).double()
                means, memories = rounds(ErrorFeedback(compressor), rows, 4)
                wanted, left = alternating_reference(
                    rows, 2, iterations, 4, start, error == "local"
                )
                torch.testing.assert_close(torch.stack(means), torch.stack(wanted))
                found = [memory.states["w"][0] for memory in memories]
                torch.testing.assert_close(torch.stack(found), torch.stack(left))


def test_two_sided_iterations_are_subspace_iterations(subtests):
    """Of the mean; four come close to the best approximation."""
    rows = [normal(12, 40, seed=seed).double() for seed in range(3)]
    mean = torch.stack(rows).mean(dim=0)
    context = ExchangeContext(0, 0, 0, 3, ("w",))
    right = torch.randn(40, 2, generator=context.generator(0, shared=True)).double()
    for iterations in (1, 2, 3):
        with subtests.test(f"{iterations}"):
            left = torch.linalg.qr(mean @ right).Q
            right = mean.T @ left
            found, _ = rounds(PowerSGD(2, 1.0, iterations=iterations), rows, 1)
            torch.testing.assert_close(found[0], left @ right.T)
    spectrum = torch.tensor([9.0, 5.0, 2.0] + [1.0] * 9, dtype=torch.float64)
    left, _, right = torch.linalg.svd(normal(12, 40).double(), full_matrices=False)
    matrix = (left * spectrum) @ right
    (found,), _ = rounds(PowerSGD(2, 1.0, iterations=4), [matrix], 1)
    assert (found - matrix).norm() <= 1.05 * spectrum[2:].norm()


def test_values_that_travel_in_an_iteration(subtests):
    """Left and right of a matrix of 12 x 40, or one of them in turn; vectors in the first."""
    for variant, iterations, wanted in [
        ("two-sided", 1, [24 + 5, 80]),
        ("two-sided", 2, [24 + 5, 80, 24, 80]),
        ("alternating", 1, [24 + 5]),
        ("alternating", 3, [24 + 5, 80, 24]),
    ]:
        with subtests.test(f"{variant}, {iterations}"):
            compressor = PowerSGD(2, 1.0, variant=variant, iterations=iterations)
            tensors = [normal(12, 40), normal(5)]
            context = ExchangeContext(0, 0, 0, 1, ("w", "b"))
            asked = compressor.exchange(tensors, [compressor.init(x) for x in tensors], context)
            request, sizes = next(asked), []
            while True:
                assert isinstance(request, AllReduce)
                sizes.append(request.tensor.numel())
                try:
                    request = asked.send(request.tensor)
                except StopIteration:
                    break
            assert sizes == wanted
