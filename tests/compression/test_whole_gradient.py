"""One budget for all tensors."""

import pytest
import torch

from phalanx.compression import (
    QSGD,
    ErrorFeedback,
    PowerSGD,
    RandomBlock,
    RandomK,
    TensorStates,
    TopK,
    WholeGradient,
    simulate,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_tensor_is_the_same_as_by_itself(subtests):
    for inner in [TopK(0.2), RandomBlock(0.3), RandomK(0.3, shared=False), QSGD()]:
        with subtests.test(f"{inner}"):
            rows = [{"w": normal(7, 9, seed=seed)} for seed in range(3)]
            one, _ = simulate(inner, rows, [TensorStates()] * 3)
            whole, _ = simulate(WholeGradient(inner), rows, [TensorStates()] * 3)
            assert torch.equal(one[0]["w"], whole[0]["w"])


def test_the_largest_values_of_all_tensors_are_sent():
    row = {"a": 10 * normal(50), "b": normal(6, 10, seed=1)}
    means, _ = simulate(WholeGradient(TopK(0.2)), [row], [TensorStates()])
    flat = torch.cat([row["a"], row["b"].view(-1)])
    border = flat.abs().sort(descending=True).values[21]
    for name, x in row.items():
        assert torch.equal(means[0][name], torch.where(x.abs() >= border, x, 0))


def test_memory_is_kept_by_tensor():
    compressor = ErrorFeedback(WholeGradient(TopK(0.1)))
    memories, total = [TensorStates()] * 2, {"a": torch.zeros(50), "b": torch.zeros(6, 10)}
    passed = {name: torch.zeros_like(x) for name, x in total.items()}
    for step in range(5):
        rows = [
            {"a": normal(50, seed=step + 9 * worker), "b": normal(6, 10, seed=step + 90 * worker)}
            for worker in (1, 2)
        ]
        means, memories = simulate(compressor, rows, memories)
        for name in total:
            total[name] += torch.stack([row[name] for row in rows]).mean(dim=0)
            passed[name] += means[0][name]
    for name in total:
        left = torch.stack([memory.states[name][0] for memory in memories]).mean(dim=0)
        torch.testing.assert_close(passed[name] + left, total[name], rtol=1e-5, atol=1e-5)


def test_what_belongs_to_tensors_is_refused(subtests):
    for inner in [ErrorFeedback(TopK()), PowerSGD()]:
        with subtests.test(f"{inner}"), pytest.raises(ValueError, match="inner must not"):
            WholeGradient(inner)
