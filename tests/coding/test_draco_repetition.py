"""The repetition code: bit for bit, whatever a minority of each group sends."""

import itertools
from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.coding import DracoRepetition
from phalanx.errors import DecodeError

DIM = 6


def rows(number, dim=DIM, seed=0, dtype=torch.float32):
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def messages_of(code, dim=DIM, seed=0, dtype=torch.float32):
    return code.encode_all([rows(code.num_partitions, dim, seed, dtype)])


def one_ulp_up(row):
    row[-1] = torch.nextafter(row[-1], torch.tensor(torch.inf, dtype=row.dtype))


def put(value, where=slice(None)):
    def lie(row):
        row[where] = value

    return lie


def disagree(row):
    row += torch.rand(len(row))


LIES = {
    "reversed": lambda row: row.mul_(-100),
    "constant": put(-100.0),
    "drawn anew by each": disagree,
    "huge": lambda row: row.mul_(1e30),
    "one unit in the last place": one_ulp_up,
    "last coordinate": lambda row: row[-1:].add_(1),
    "first coordinate": lambda row: row[:1].add_(1),
    "nan": put(torch.nan),
    "one nan": put(torch.nan, 2),
    "inf": put(torch.inf),
    "zero": put(0.0),
}
every_lie = pytest.mark.parametrize("lie", LIES.values(), ids=LIES)


def survivable(code):
    """Every set of liars that leaves a majority in each group."""
    choices = [
        [chosen for size in range((len(group) + 1) // 2) for chosen in combinations(group, size)]
        for group in code.groups
    ]
    return [[worker for chosen in pick for worker in chosen] for pick in product(*choices)]


def same_bits(one, other):
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize(
    "code",
    [
        DracoRepetition(3, 1),
        DracoRepetition(5, 2),
        DracoRepetition(6, 1),
        DracoRepetition(7, 1),
        DracoRepetition(7, 2),
        DracoRepetition(7, 1, partitions="group"),
    ],
    ids=repr,
)
def test_every_survivable_set_of_liars_changes_no_bit(code, subtests):
    honest = messages_of(code)
    expected = code.decode(honest).gradient
    for name, lie in LIES.items():
        with subtests.test(lie=name):
            for number, bad in enumerate(survivable(code)):
                messages = honest.clone()
                for worker in bad:
                    lie(messages[worker])
                decoded = code.decode(messages, generator=torch.Generator().manual_seed(number))
                assert same_bits(decoded.gradient, expected)
                assert decoded.suspects.nonzero().flatten().tolist() == bad
                assert decoded.residual == 0


def test_a_lie_in_any_one_place_is_seen(subtests):
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    for dtype, dim, seed in itertools.product(dtypes, [1, 7, 70_001], [0, 1, 2]):
        with subtests.test(dtype=dtype, dim=dim, seed=seed):
            code = DracoRepetition(7, 3)
            honest = messages_of(code, dim, dtype=dtype)
            place = int(torch.randint(dim, (), generator=torch.Generator().manual_seed(seed)))
            for where in {0, place, dim - 1}:
                messages = honest.clone()
                messages[[1, 2, 6], where] += 1
                decoded = code.decode(messages)
                assert decoded.suspects.nonzero().flatten().tolist() == [1, 2, 6]
                assert torch.equal(decoded.gradient, code.decode(honest).gradient)


def test_minus_zero_is_not_zero():
    code = DracoRepetition(3, 1)
    messages = torch.zeros(3, 5)
    messages[1, 3] = -0.0
    decoded = code.decode(messages)
    assert decoded.suspects.tolist() == [False, True, False]
    assert same_bits(decoded.gradient, torch.zeros(5))


def test_columns_of_a_larger_tensor_decode_alike():
    code = DracoRepetition(6, 1)
    messages = messages_of(code, 40)
    messages[4] = 3.0
    for view in (messages[:, 3:20], messages[:, ::2], messages.T.contiguous().T):
        assert torch.equal(code.decode(view).gradient, code.decode(view.clone()).gradient)
        assert code.decode(view).suspects.nonzero().flatten().tolist() == [4]


def test_the_mean_is_that_of_the_gradients():
    gradients = rows(7)
    decoded = DracoRepetition(7, 1).decode(DracoRepetition(7, 1).encode_all([gradients]))
    assert torch.allclose(decoded.gradient, gradients.mean(0), rtol=1e-6, atol=1e-7)


def test_the_rest_of_the_workers_join_the_last_group():
    code = DracoRepetition(11, 1)
    assert code.groups == (range(3), range(3, 6), range(6, 11))
    assert code.assignment[6:, 6:].all()
    messages = messages_of(code)
    expected = code.decode(messages).gradient
    messages[[6, 8]] = -100.0  # two of five: more than s, yet a minority
    decoded = code.decode(messages)
    assert torch.equal(decoded.gradient, expected)
    assert decoded.suspects.nonzero().flatten().tolist() == [6, 8]


def test_a_strict_majority_of_those_that_arrived(subtests):
    """h: honest, l: lies like the other liars, m: missing."""
    for pattern in list(product("hlm", repeat=5)):
        with subtests.test(pattern=pattern):
            code = DracoRepetition(5, 2)
            honest = messages_of(code)
            messages = honest.clone()
            arrived = torch.tensor([kind != "m" for kind in pattern])
            lying = torch.tensor([kind == "l" for kind in pattern])
            messages[lying, -1] += 1
            messages[~arrived] = torch.nan
            if 2 * pattern.count("h") > int(arrived.sum()):
                decoded = code.decode(messages, arrived)
                assert torch.equal(decoded.gradient, code.decode(honest).gradient)
                assert torch.equal(decoded.suspects, lying)
            elif pattern.count("h") == pattern.count("l"):
                with pytest.raises(DecodeError, match="no strict majority"):
                    code.decode(messages, arrived)


def test_the_group_without_a_majority_is_named():
    code = DracoRepetition(9, 1)
    messages = messages_of(code)
    messages[4] += 1
    messages[5] += 2
    with pytest.raises(DecodeError, match="workers 3 to 5 cannot be decoded") as caught:
        code.decode(messages)
    assert caught.value.workers == [3, 4, 5]
    assert caught.value.bound == 1


def test_a_majority_that_is_not_finite_is_an_error(subtests):
    for tolerance, value in itertools.product([0.0, 1e-3], [torch.inf, -torch.inf, torch.nan]):
        with subtests.test(tolerance=tolerance, value=value):
            code = DracoRepetition(6, 1, tolerance=tolerance)
            messages = messages_of(code)
            messages[3:5, 1] = value
            with pytest.raises(DecodeError, match="workers 3 to 5 cannot be decoded"):
                code.decode(messages)


@given(
    s=st.integers(0, 4),
    extra=st.integers(0, 6),
    groups=st.integers(1, 4),
    lie=st.sampled_from(sorted(LIES)),
    seed=st.integers(0, 2**32),
)
def test_random_liars_of_random_codes(s, extra, groups, lie, seed):
    code = DracoRepetition((2 * s + 1) * groups + min(extra, 2 * s), s)
    generator = torch.Generator().manual_seed(seed)
    honest = messages_of(code, 33, seed)
    messages = honest.clone()
    bad = []
    for group in code.groups:
        order = torch.randperm(len(group), generator=generator)
        bad += [group[position] for position in order[:s].tolist()]
    for worker in bad:
        LIES[lie](messages[worker])
    decoded = code.decode(messages, generator=generator)
    assert same_bits(decoded.gradient, code.decode(honest).gradient)
    assert decoded.suspects.nonzero().flatten().tolist() == sorted(bad)


def test_replicas_that_differ_in_the_last_digits_agree_within_a_tolerance():
    code = DracoRepetition(15, 3, tolerance=1e-5)
    honest = messages_of(code, 50)
    messages = honest * (1 + 1e-6 * rows(15, 50, seed=1).clamp(-1, 1))
    with pytest.raises(DecodeError):
        DracoRepetition(15, 3).decode(messages)
    decoded = code.decode(messages)
    assert not decoded.suspects.any()
    assert 1e-7 < decoded.residual <= 1e-5
    exact = code.decode(honest).gradient
    assert (decoded.gradient - exact).norm() <= 1e-5 * exact.norm()


def test_beyond_the_tolerance_is_a_lie(subtests):
    cases = [lie for name, lie in LIES.items() if name != "one unit in the last place"]
    for lie in cases:
        with subtests.test(lie=lie):
            code = DracoRepetition(5, 2, tolerance=1e-3)
            honest = messages_of(code)
            for bad in combinations(range(5), 2):
                messages = honest * (1 + 1e-6 * rows(5, DIM, seed=1).clamp(-1, 1))
                for worker in bad:
                    lie(messages[worker])
                decoded = code.decode(messages)
                assert tuple(decoded.suspects.nonzero().flatten().tolist()) == bad
                exact = code.decode(honest).gradient
                assert (decoded.gradient - exact).norm() <= 1e-5 * exact.norm()


def test_with_a_tolerance_too_there_must_be_a_majority():
    code = DracoRepetition(5, 2, tolerance=1e-3)
    messages = messages_of(code)
    messages[2] += 1
    messages[3:] += 2
    with pytest.raises(DecodeError, match="no strict majority"):
        code.decode(messages)


def explanations(near, majority):
    """Every set of a majority of voters, any two of which agree: by trying all."""
    voters = range(len(near))
    for size in range(majority, len(near) + 1):
        for chosen in combinations(voters, size):
            if all(near[i][j] for i, j in combinations(chosen, 2)):
                yield set(chosen)


def test_named_is_who_belongs_to_no_explanation(subtests):
    """Random graphs of agreement on a line and in the plane, against all sets of voters."""
    source = torch.Generator().manual_seed(0)
    several = 0
    for trial in range(300):
        s = 1 + trial % 4
        n, dim = 2 * s + 1, 1 + trial % 2
        code = DracoRepetition(n, s, tolerance=0.01)
        offsets = torch.rand(n, dim, generator=source, dtype=torch.float64)
        messages = 1 + 0.02 * offsets * torch.rand((), generator=source)
        apart = torch.cdist(messages, messages)
        norms = messages.norm(dim=1)
        near = (apart <= 0.01 * torch.maximum(norms[:, None], norms)).tolist()
        found = list(explanations(near, s + 1))
        with subtests.test(trial=trial):
            if not found:
                with pytest.raises(DecodeError, match="no strict majority"):
                    code.decode(messages)
                continue
            several += len(set(map(frozenset, found))) > 1
            decoded = code.decode(messages)
            innocent = set.union(*found)
            named = set(decoded.suspects.nonzero().flatten().tolist())
            assert named == set(range(n)) - innocent
            # Whoever was honest, the answer is no farther from what any of them sent than stated.
            off = (decoded.gradient * n - messages[sorted(innocent)]).norm(dim=1).max()
            assert off <= decoded.error * norms[sorted(innocent)].min() * (1 + 1e-9)
            assert decoded.error <= 0.02 * 1.1
    assert several > 100


def test_a_chain_within_the_tolerance_frames_nobody():
    """Honest at 0 and 1, a Byzantine message at 2 that agrees with one of them: who is wrong?"""
    code = DracoRepetition(3, 1, tolerance=1e-3)
    base = torch.ones(8, dtype=torch.float64)
    messages = torch.stack([base, base * (1 + 9e-4), base * (1 + 18e-4)])
    decoded = code.decode(messages)
    assert not decoded.suspects.any()
    assert decoded.gradient.mul(3).equal(messages[1])  # near to both of the others
    assert decoded.error == pytest.approx(9e-4, rel=1e-2)
    messages[2] = base * (1 + 21e-4)  # near to nobody any more
    assert code.decode(messages).suspects.tolist() == [False, False, True]


def test_messages_of_any_size_agree_within_a_tolerance(subtests):
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        with subtests.test(scale=scale):
            messages = torch.ones(5, 6, dtype=torch.float64) * scale
            messages[1] *= 1 + 1e-6
            messages[3], messages[4] = 0.0, 1e-308
            decoded = DracoRepetition(5, 2, tolerance=1e-5).decode(messages)
            assert decoded.suspects.tolist() == [False, False, False, True, True]
            assert 1e-7 < decoded.error < 2e-6


def test_honest_messages_exactly_at_the_tolerance_agree(subtests):
    for tolerance, dtype in [(1e-12, torch.float64), (3e-7, torch.float32), (1e-2, torch.float64)]:
        with subtests.test(tolerance=tolerance):
            messages = rows(3, 999, dtype=dtype)[:1].repeat(3, 1)
            messages[1] *= 1 + tolerance
            a, b = messages[0].double(), messages[1].double()
            exact = float((a - b).norm() / torch.maximum(a.norm(), b.norm()))
            messages[2] = -9.0
            decoded = DracoRepetition(3, 1, tolerance=exact).decode(messages)
            assert decoded.suspects.tolist() == [False, False, True]
