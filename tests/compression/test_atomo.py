"""Probabilities of least variance, and what ATOMO has in common with other methods."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.compression import (
    QSGD,
    Atomo,
    AutoBasis,
    Basis,
    Decomposition,
    Entries,
    RandomizedSingularVectors,
    SingularVectors,
    TernGrad,
    Waves,
)
from phalanx.compression.sampling import probabilities, sample, threshold


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chances(sizes, budget):
    return probabilities(sizes, threshold(sizes, budget))


@given(
    sizes=st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 2.5, 7.0, 1e6]), min_size=1, max_size=30),
    share=st.floats(0.01, 1.2),
)
def test_the_probabilities_fulfil_the_conditions_of_a_minimum(sizes, share):
    sizes = torch.tensor(sizes, dtype=torch.float64)
    budget = share * len(sizes)
    found = chances(sizes, budget)
    assert ((found >= 0) & (found <= 1)).all()
    assert torch.equal(found > 0, sizes > 0)
    assert found.sum().item() == pytest.approx(min(budget, int((sizes > 0).sum())), rel=1e-9)
    free, certain = (found > 0) & (found < 1), found == 1
    ratios = sizes[free] / found[free]
    if len(ratios):
        assert ratios.max() <= ratios.min() * (1 + 1e-9)
        assert (sizes[certain] >= ratios.max() * (1 - 1e-9)).all()


def test_no_other_probabilities_have_less_variance():
    sizes = normal(12).abs() ** 3
    best = chances(sizes, 4.0)
    variance = lambda p: (sizes**2 * (1 / p - 1)).sum()  # noqa: E731
    assert best.sum() == pytest.approx(4)
    for seed in range(200):
        other = normal(12, seed=seed).exp()
        other = chances(other, 4.0)  # of the same sum, none above one
        assert variance(best) <= variance(other) * (1 + 1e-9)
    official = (4 * sizes / sizes.sum()).clamp(max=1)
    assert official.sum() < 4
    assert variance(best) < variance(official)


def test_every_atom_is_kept_with_its_probability(subtests):
    for method in ["systematic", "bernoulli"]:
        with subtests.test(f"{method}"):
            wanted = chances(normal(9).abs(), 4.0)
            source = torch.Generator().manual_seed(0)
            draws = torch.stack([sample(wanted, method, source) for _ in range(2000)]).double()
            standard = (wanted * (1 - wanted) / 2000).sqrt()
            assert ((draws.mean(dim=0) - wanted).abs() <= 4.5 * standard + 1e-12).all()
            if method == "systematic":
                assert (draws.sum(dim=1) == 4).all()


ATOMS = [
    Entries(),
    Waves(),
    SingularVectors(),
    SingularVectors("paper"),
    RandomizedSingularVectors(rank=1),
]


@pytest.mark.parametrize("atoms", ATOMS, ids=repr)
def test_enough_atoms_lose_nothing(atoms, subtests):
    for shape in [(7, 5), (5, 7), (4, 3, 2), (6,)]:
        with subtests.test(f"{shape}"):
            x = normal(*shape)
            compressor = Atomo(atoms, budget=100.0)
            decoded = compressor.decode(compressor.encode(x, torch.Generator().manual_seed(0)))
            torch.testing.assert_close(decoded, x, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("atoms", ATOMS, ids=repr)
def test_the_variance_is_the_one_stated(atoms, subtests):
    for sampling in ["systematic", "bernoulli"]:
        with subtests.test(f"{sampling}"):
            x = normal(6, 8)
            compressor = Atomo(atoms, budget=3.0, sampling=sampling)
            source = torch.Generator().manual_seed(0)
            draws = [compressor.decode(compressor.encode(x, source)) - x for _ in range(500)]
            squares = torch.stack(draws).square().sum(dim=(1, 2))
            off = abs(squares.mean().item() - compressor.variance(x))
            assert off <= 4.5 * squares.std().item() / len(squares) ** 0.5 + 1e-20


def test_singular_values_are_those_of_a_full_decomposition():
    for matrix in (normal(9, 4), normal(4, 9), normal(6, 2) @ normal(2, 7, seed=1)):
        sizes, (left, right) = SingularVectors().analyse(matrix)
        torch.testing.assert_close(sizes, torch.linalg.svdvals(matrix), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(left.T @ right, matrix)


def test_bytes_of_singular_vectors():
    message = Atomo(budget=3.0).encode(normal(20, 30).float(), torch.Generator().manual_seed(0))
    assert message.num_bytes == 4 * 3 * (20 + 30) + 8


def test_one_level_is_entry_wise_atomo(subtests):
    """The same bits from the same draws; and a budget that comes to the same is near."""
    for budget, other in [
        ("l2", QSGD(levels=1, bucket_size=10**6)),
        ("max", QSGD(levels=1, bucket_size=10**6, norm="max")),
        ("max", TernGrad()),
    ]:
        for dtype in [torch.float32, torch.float64, torch.bfloat16]:
            with subtests.test(f"{budget}, {other}, {dtype}"):
                for seed in range(20):
                    x = normal(7, 9, seed=seed).to(dtype)
                    atomo = Atomo(Entries(), budget=budget, sampling="bernoulli")
                    ours = atomo.decode(atomo.encode(x, torch.Generator().manual_seed(seed)))
                    theirs = other.decode(other.encode(x, torch.Generator().manual_seed(seed)))
                    assert torch.equal(ours, theirs)


def test_a_budget_of_the_ratio_of_norms_is_that_norm():
    x = normal(63)
    for order, name in ((2, "l2"), (float("inf"), "max")):
        ratio = (x.norm(1) / x.norm(order)).item()
        numeric, named = (Atomo(Entries(), budget=one) for one in (ratio, name))
        assert numeric.variance(x) == pytest.approx(named.variance(x), rel=1e-9)


def matrix_with(spectrum, rows, columns, seed=0):
    """Random singular vectors, and these singular values."""
    left = torch.linalg.qr(normal(rows, rows, seed=seed)).Q
    right = torch.linalg.qr(normal(columns, rows, seed=seed + 1)).Q
    return ((left * spectrum(torch.arange(1.0, rows + 1))) @ right.T).float()


SPECTRA = {
    "flat": lambda i: torch.ones_like(i),
    "root": lambda i: i**-0.5,
    "harmonic": lambda i: 1 / i,
    "square": lambda i: i**-2,
    "geometric": lambda i: 0.9**i,
    "slow": lambda i: 0.98**i,
    "fast": lambda i: 0.7**i,
    "few": lambda i: (i <= 5).to(i),
    "some": lambda i: (i <= 20).to(i),
    "spike": lambda i: torch.where(i <= 1, 10.0, 0.1),
}


@pytest.mark.slow
def test_random_projections_have_the_variance_of_exact_ones(subtests):
    """Within 5 % of the optimum, in no more bytes than exact singular vectors take."""
    for name, spectrum in SPECTRA.items():
        for budget in [0.5, 3.0]:
            with subtests.test(f"{name}, {budget}"):
                x = matrix_with(spectrum, 96, 400)
                exact = Atomo(budget=budget)
                ours = Atomo(RandomizedSingularVectors(), budget=budget)
                assert ours.variance(x) <= 1.05 * exact.variance(x) + 1e-6 * x.square().sum()
                source = torch.Generator().manual_seed(0)
                sizes = torch.tensor([ours.encode(x, source).num_bytes for _ in range(80)]).double()
                # Whole vectors come and go: the mean of so many draws is off by as much.
                off = 4 * sizes.std() / len(sizes) ** 0.5
                assert sizes.mean() <= 1.02 * budget * 4 * (96 + 400) + 60 + off


def test_large_budgets_cost_more_where_exact_vectors_leave_little(subtests):
    for budget, most in [(6.0, 1.05), (16.0, 4 / 3)]:
        for spectrum in ["geometric", "fast", "harmonic", "some"]:
            with subtests.test(f"{budget}, {most}, {spectrum}"):
                x = matrix_with(SPECTRA[spectrum], 96, 400)
                ours = Atomo(RandomizedSingularVectors(), budget=budget).variance(x)
                assert ours <= most * Atomo(budget=budget).variance(x)


def test_budgets_are_spent_where_few_entries_are_large(subtests):
    """Some entries are certain: their values count, too, and levels are looked for."""
    for scale in [1.0, 1e-30]:
        with subtests.test(f"{scale}"):
            x = scale * normal(80, 200).float() ** 7
            compressor = Atomo(RandomizedSingularVectors(rank=4), bytes_budget=3000.0)
            source = torch.Generator().manual_seed(0)
            sizes = [compressor.encode(x, source).num_bytes for _ in range(40)]
            assert sum(sizes) / 40 == pytest.approx(3000, rel=0.05)


def test_vectors_and_rest_add_up_to_the_matrix():
    x = matrix_with(SPECTRA["harmonic"], 96, 400)
    for tensor in (x, x.T.contiguous(), 1e30 * x, 1e-30 * x):
        split = RandomizedSingularVectors(rank=8).split(tensor)
        assert split.left.shape[0] < 96
        found = split.scale * (split.left.T @ split.right + split.rest)
        torch.testing.assert_close(found / tensor.norm(), tensor / tensor.norm())


@pytest.mark.slow
def test_a_sketched_matrix_is_right_on_average():
    """Along its singular vectors, the first of which are atoms, and along random directions."""
    x = matrix_with(SPECTRA["harmonic"], 70, 90)
    compressor = Atomo(RandomizedSingularVectors(rank=4), budget=4.0)
    source = torch.Generator().manual_seed(0)
    draws = torch.stack([compressor.decode(compressor.encode(x, source)) for _ in range(400)])
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    random = torch.randn(16, 70, 90, generator=source)
    directions = torch.cat([left.T[:, :, None] * right[:, None], random]).flatten(1)
    found = draws.flatten(1) @ directions.T
    off = found.mean(dim=0) - directions @ x.flatten()
    assert (off.abs() <= 4.5 * found.std(dim=0) / 400**0.5 + 1e-6).all()
    spread = (draws - x).square().sum(dim=(1, 2)).mean().item()
    assert spread == pytest.approx(compressor.variance(x), rel=0.1)


def test_a_budget_of_bytes_is_kept(subtests):
    for atoms, expected in [(SingularVectors(), 960), (Entries(), 240), (Waves(), 240)]:
        with subtests.test(f"{atoms}"):
            x = normal(40, 60).float()
            compressor = Atomo(atoms, bytes_budget=float(expected))
            source = torch.Generator().manual_seed(0)
            sizes = [compressor.encode(x, source).num_bytes for _ in range(60)]
            assert sum(sizes) / 60 == pytest.approx(expected, abs=0.03 * expected + 40)


def test_matrices_of_the_paper(subtests):
    for shape, sides in [
        ((64, 3, 3, 3), (96, 18)),
        ((3, 5, 3, 3), (15, 9)),
        ((128, 64, 1, 1), (128, 64)),
        ((10, 512), (10, 512)),
        ((64,), (32, 2)),
        ((63,), (63, 1)),
        ((), (1, 1)),
    ]:
        with subtests.test(f"{shape}, {sides}"):
            assert SingularVectors("paper").sides(shape) == sides


def test_atoms_without_a_price_have_no_budget_of_bytes():
    class Free(SingularVectors):
        affordable = Decomposition.affordable

    with pytest.raises(ValueError, match="bytes_budget must be None"):
        Atomo(Free(), bytes_budget=3.0)
    with pytest.raises(ValueError, match="bytes_budget must be above 0"):
        Atomo(bytes_budget=0.0)


def test_a_basis_of_ones_own():
    class Reversed(Basis):
        def forward(self, flat):
            return flat.flip(0)

        inverse = forward

    compressor = Atomo(Reversed(), budget=100.0)
    x = normal(5)
    message = compressor.encode(x, torch.Generator())
    assert torch.equal(compressor.decode(message), x)
    assert torch.equal(
        compressor.decode(compressor.from_bytes(message.to_bytes(), (5,), x.dtype)), x
    )


def test_budgets_are_above_zero(subtests):
    for budget in [0.0, -1.0, float("nan"), "l1"]:
        with (
            subtests.test(f"{budget}"),
            pytest.raises((ValueError, TypeError), match="budget"),
        ):
            Atomo(budget=budget)


def test_the_least_variance_in_as_many_bytes_is_chosen(subtests):
    """Whatever the scale; and the variance is that of the chosen kind, by both formulas."""
    low_rank = torch.outer(normal(40), normal(50, seed=1)).float()
    spikes = torch.zeros(40, 50)
    spikes[::7, ::9] = normal(6, 6).float()
    wave = torch.cos(torch.arange(2000.0) * 0.05).view(40, 50) + 0.01 * normal(40, 50).float()
    for x in (low_rank, spikes, wave, normal(40, 50).float(), normal(300).float()):
        for scale in (1.0, 1e-30, 1e30):
            with subtests.test(f"{x.shape}, {scale}"):
                auto = AutoBasis()
                each = [Atomo(one, bytes_share=0.1).variance(x) for one in auto.kinds]
                chosen = auto.kind(scale * x, 0.1 * x.numel() * 4)
                assert each[auto.kinds.index(chosen)] == min(each)
                found = Atomo(auto, bytes_share=0.1).variance(x)
                assert found == pytest.approx(min(each), rel=1e-6, abs=1e-6)
    assert AutoBasis().kind(low_rank, 800.0) == SingularVectors()
    assert AutoBasis().kind(spikes, 800.0) == Entries()
    assert AutoBasis().kind(wave, 200.0) == Waves()


def test_the_variance_has_two_forms():
    x = normal(50)
    tau = threshold(x.abs(), 9.0)
    chances = probabilities(x.abs(), tau)
    below = x.abs()[x.abs() < tau]
    first = (x**2 * (1 / chances - 1)).sum().item()
    assert first == pytest.approx((below * (tau - below)).sum().item(), rel=1e-9)
    assert Atomo(Entries(), budget=9.0).variance(x) == pytest.approx(first, rel=1e-9)


def test_bytes_hold_the_values_of_certain_entries_too(subtests):
    """A few large entries among many small ones: equal bytes means all that is sent."""
    x = normal(100, 200).float() ** 7
    for atoms in (Entries(), Waves(), AutoBasis()):
        for share in (0.02, 0.1):
            with subtests.test(f"{atoms}, {share}"):
                compressor, source = (
                    Atomo(atoms, bytes_share=share),
                    torch.Generator().manual_seed(0),
                )
                sizes = [compressor.encode(x, source).num_bytes for _ in range(20)]
                assert sum(sizes) / 20 <= 1.03 * share * 4 * x.numel() + 40
                assert sum(sizes) / 20 >= 0.85 * share * 4 * x.numel()


@pytest.mark.parametrize("failing", [{torch.float32}, {torch.float32, torch.float64}])
def test_eigenvectors_that_are_not_found_stop_nothing(monkeypatch, failing, subtests):
    """The atoms still add up, exactly, and on average."""
    eigh, calls = torch.linalg.eigh, []

    def broken(matrix):
        calls.append(matrix.dtype)
        if matrix.dtype in failing:
            raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    for atoms in (SingularVectors(), RandomizedSingularVectors(rank=2)):
        with subtests.test(f"{atoms}"):
            x = normal(12, 20).float()
            source = torch.Generator().manual_seed(0)
            whole = Atomo(atoms, budget=100.0)
            torch.testing.assert_close(whole.decode(whole.encode(x, source)), x)
            some = Atomo(atoms, budget=4.0)
            draws = torch.stack([some.decode(some.encode(x, source)) for _ in range(400)])
            off = (draws.mean(dim=0) - x).norm().item()
            assert off <= 2 * (some.variance(x) / 400) ** 0.5
    assert calls.count(torch.float32) == calls.count(torch.float64) > 0


def test_bytes_are_stated_once_and_where_they_are_needed():
    with pytest.raises(ValueError, match="bytes_share must be None where bytes_budget is given"):
        Atomo(bytes_budget=9.0, bytes_share=0.1)
    with pytest.raises(ValueError, match="bytes_share must be"):
        Atomo(bytes_share=0.0)
    with pytest.raises(ValueError, match=r"bytes_share \(or bytes_budget\) must be given"):
        Atomo(AutoBasis())
    with pytest.raises(ValueError, match="kinds must be 1 to 256"):
        AutoBasis((AutoBasis(),))
