"""What every compressor promises."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compression.cases import CASES
from laws import by_class, concrete
from phalanx import compression
from phalanx.communication import AllReduce, ExchangeContext
from phalanx.compression import (
    Compressor,
    ErrorFeedback,
    HalfPrecision,
    RandomBlock,
    RandomK,
    SignSGD,
    TensorStates,
    TernGrad,
    Threshold,
    TopK,
    TwoStage,
    simulate,
)
from phalanx.errors import NotFiniteError, WireError

DRAWS = 300
SHAPES = [(), (1,), (5,), (0,), (3, 0), (1, 1), (7, 13), (9, 3, 2), (130,)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def each(cases):
    """One test per class of compressor, for a loop over its cases."""
    grouped = by_class(cases)
    return pytest.mark.parametrize("compressors", grouped.values(), ids=grouped)


every = each(CASES)
unbiased = each([one for one in CASES if one.unbiased])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def test_every_compressor_of_the_room_is_among_the_cases():
    assert set(concrete(compression, Compressor)) == {type(case) for case in CASES}


@every
def test_what_travels_decodes_to_the_same_bits(compressors, subtests):
    for compressor in compressors:
        for shape in SHAPES:
            for dtype in DTYPES:
                with subtests.test(f"{compressor}, {shape}, {dtype}"):
                    x = normal(*shape, dtype=dtype)
                    kept = x.clone()
                    message = compressor.encode(x, generator(1))
                    decoded = compressor.decode(message)
                    data = message.to_bytes()
                    assert same(x, kept)
                    assert message.num_bytes == len(data)
                    assert (decoded.shape, decoded.dtype) == (x.shape, dtype)
                    assert decoded.isfinite().all()
                    received = compressor.from_bytes(data, shape, dtype)
                    assert received.to_bytes() == data
                    assert same(compressor.decode(received), decoded)
                    assert same(compressor.decode(compressor.encode(x, generator(1))), decoded)
                    assert not x.numel() or len(message.layout) == len(message.parts)


@every
def test_the_size_follows_from_the_shape_where_it_is_said_to(compressors, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            sizes = {
                compressor.encode(x, generator(seed)).num_bytes
                for seed, x in enumerate(
                    [normal(20, 30), 9 * normal(20, 30, seed=1), torch.zeros(20, 30)]
                )
            }
            assert len(sizes) == 1 or not compressor.fixed_size
            varies = any(part.varies for part in compressor.layout((20, 30), torch.float32))
            assert varies == (not compressor.fixed_size)


@every
def test_strides_do_not_matter(compressors, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            x = normal(8, 6)
            transposed = compressor.encode(x.T, generator(1)).to_bytes()
            assert transposed == compressor.encode(x.T.contiguous(), generator(1)).to_bytes()


@every
def test_constant_tensors(compressors, subtests):
    for compressor in compressors:
        for value in [0.0, 1.0, -3.0]:
            with subtests.test(f"{compressor}, {value}"):
                decoded = compressor.decode(
                    compressor.encode(torch.full((6, 7), value), generator(2))
                )
                assert decoded.isfinite().all()
                if value == 0 and not isinstance(compressor, SignSGD):
                    assert not decoded.any()


@every
def test_the_largest_and_smallest_numbers_stay_finite(compressors, subtests):
    for compressor in compressors:
        for dtype in DTYPES:
            with subtests.test(f"{compressor}, {dtype}"):
                limits = torch.finfo(dtype)
                x = torch.tensor(
                    [limits.max, limits.min, limits.tiny, -limits.tiny, 0.0, 1.0] * 5, dtype=dtype
                )
                for tensor in (x, x.view(5, 6), x.view(5, 6)[:, 2:5]):
                    assert (
                        compressor.decode(compressor.encode(tensor, generator(3))).isfinite().all()
                    )


@every
def test_what_is_not_finite_is_refused(compressors, subtests):
    for compressor in compressors:
        for bad in [float("nan"), float("inf"), float("-inf")]:
            with subtests.test(f"{compressor}, {bad}"):
                x = normal(4, 5)
                x[1, 2] = bad
                with pytest.raises(NotFiniteError, match="must be finite"):
                    compressor.encode(x, generator())


@every
def test_random_ones_need_a_generator(compressors, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            if compressor.random:
                with pytest.raises(ValueError, match="generator must be given"):
                    compressor.encode(normal(3))
            else:
                compressor.encode(normal(3))


@every
def test_it_is_a_value(compressors, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            assert pickle.loads(pickle.dumps(compressor)) == compressor


def errors(compressor, x):
    """Decoded tensors less the tensor: one row a draw."""
    source = generator(4)
    draws = DRAWS if compressor.random else 2
    rows = [compressor.decode(compressor.encode(x, source)) - x for _ in range(draws)]
    return torch.stack(rows).double().flatten(1)


@pytest.mark.slow
@unbiased
def test_the_mean_of_many_draws_is_the_tensor(compressors, subtests):
    """Each coordinate within 4.5 standard errors: wrong once in a thousand tests of this size."""
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            x = normal(6, 8, seed=5)
            found = errors(compressor, x)
            squares = found.square().sum(dim=1)
            # A rare coordinate may not have been drawn: the average variance stands in for it.
            floor = (squares.mean() / x.numel()).sqrt()
            standard = torch.maximum(found.std(dim=0), floor) / DRAWS**0.5
            assert (found.mean(dim=0).abs() <= 4.5 * standard + 1e-6).all()
            if (bound := compressor.variance_bound(x.numel())) is not None:
                ratios = squares / x.square().sum()
                assert ratios.mean() <= bound + 4.5 * ratios.std() / DRAWS**0.5 + 1e-6


@unbiased
def test_the_variance_of_one_large_value_is_within_its_bound(compressors, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            x = torch.full((6, 8), 0.1)
            x[2, 3] = 1
            if (bound := compressor.variance_bound(x.numel())) is not None:
                ratios = errors(compressor, x).square().sum(dim=1) / x.square().sum()
                assert ratios.mean() <= bound + 4.5 * ratios.std() / DRAWS**0.5 + 1e-6


@every
def test_the_error_contracts_as_promised(compressors, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            delta = compressor.contraction(48)
            if delta is None:
                continue
            assert 0 < delta <= 1
            for x in (normal(6, 8, seed=5), torch.eye(6, 8), torch.ones(6, 8)):
                ratios = errors(compressor, x).square().sum(dim=1) / x.square().sum()
                assert ratios.mean() <= 1 - delta + 4.5 * ratios.std() / DRAWS**0.5 + 1e-6


def accept_or_refuse(compressor, data, shape):
    """Whatever the bytes: a typed error, or a message of exactly these bytes that decodes."""
    try:
        message = compressor.from_bytes(data, shape, torch.float32)
    except WireError:
        return False
    assert message.to_bytes() == data
    decoded = compressor.decode(message)
    assert decoded.shape == shape
    assert decoded.isfinite().all()
    return True


@every
@given(data=st.data())
def test_forged_bytes(compressors, data):
    for compressor in compressors:
        shape = data.draw(st.sampled_from([(7, 13), (5,), ()]))
        honest = compressor.encode(normal(*shape), generator(6)).to_bytes()
        assert accept_or_refuse(compressor, honest, shape)
        accept_or_refuse(compressor, data.draw(st.binary(max_size=2 * len(honest))), shape)
        forged = bytearray(honest)
        places = st.tuples(st.integers(0, len(honest) - 1), st.integers(0, 255))
        for place, byte in data.draw(st.lists(places, max_size=4)):
            forged[place] = byte
        accept_or_refuse(compressor, bytes(forged), shape)
        cut = data.draw(st.integers(0, len(honest) - 1))
        assert not accept_or_refuse(compressor, honest[:cut], shape)
        more = bytes(data.draw(st.integers(1, 9)))
        assert not accept_or_refuse(compressor, honest + more, shape)


def workers(num_workers, seed=0):
    """Tensors of several shapes, an empty one and a mixture of dtypes among them."""
    return [
        {
            "weight": normal(9, 11, seed=seed + worker),
            "bias": normal(9, seed=seed + 100 + worker),
            "empty": torch.zeros(0, 3),
            "half": normal(4, 5, seed=seed + 200 + worker, dtype=torch.float16),
        }
        for worker in range(num_workers)
    ]


@every
def test_all_workers_know_the_same_mean(compressors, subtests):
    for compressor in compressors:
        for num_workers in [1, 3]:
            with subtests.test(f"{compressor}, {num_workers}"):
                rows = workers(num_workers)
                means, memories = simulate(compressor, rows, [TensorStates()] * num_workers, seed=7)
                again, _ = simulate(compressor, rows, [TensorStates()] * num_workers, seed=7)
                for mean in means:
                    assert all(same(mean[name], means[0][name]) for name in rows[0])
                    assert all(mean[name].dtype == rows[0][name].dtype for name in rows[0])
                    assert all(mean[name].shape == rows[0][name].shape for name in rows[0])
                assert all(same(again[0][name], means[0][name]) for name in rows[0])
                assert [memory.step for memory in memories] == [1] * num_workers


@every
def test_a_memory_survives_a_checkpoint(compressors, tmp_path, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            memories = [TensorStates()] * 2
            for step in range(2):
                _, memories = simulate(compressor, workers(2, seed=step), memories)
            torch.save([memory.state_dict() for memory in memories], tmp_path / "memory.pt")
            saved = torch.load(tmp_path / "memory.pt", weights_only=True)
            restored = [TensorStates.from_state_dict(one) for one in saved]
            straight, _ = simulate(compressor, workers(2, seed=5), memories)
            resumed, _ = simulate(compressor, workers(2, seed=5), restored)
            assert all(same(straight[0][name], resumed[0][name]) for name in straight[0])


@every
def test_one_worker_that_is_not_finite_stops_all_and_is_named(compressors, subtests):
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            rows = workers(3)
            rows[1]["bias"][0] = float("nan")
            with pytest.raises(NotFiniteError) as found:
                simulate(compressor, rows, [TensorStates()] * 3)
            assert found.value.workers == [1]
            assert pickle.loads(pickle.dumps(found.value)).workers == [1]


@every
def test_a_tensor_that_sits_out_a_round_keeps_its_memory(compressors, subtests):
    """Neither randomness nor memory depends on which other tensors took part."""
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            rows = workers(2)
            some = [{"weight": row["weight"]} for row in rows]
            memories = [TensorStates()] * 2
            _, memories = simulate(compressor, rows, memories)
            _, skipped = simulate(compressor, some, memories)
            for before, after in zip(memories, skipped, strict=True):
                assert before.states.keys() == after.states.keys()
                kept = zip(before.states.get("bias", ()), after.states.get("bias", ()), strict=True)
                assert all(same(one, other) for one, other in kept)


@each([one for one in CASES if not one.unbiased])
def test_the_first_round_of_error_feedback_is_that_of_the_compressor(compressors, subtests):
    """And what it did not let through is in the memory."""
    rows = workers(1)
    for compressor in compressors:
        with subtests.test(f"{compressor}"):
            means, _ = simulate(compressor, rows, [TensorStates()])
            again, memories = simulate(ErrorFeedback(compressor), rows, [TensorStates()])
            for name in ("weight", "bias"):
                assert same(again[0][name], means[0][name])
                left = memories[0].states[name][0]
                torch.testing.assert_close(left + again[0][name], rows[0][name])


def test_nothing_is_lost_with_error_feedback(subtests):
    """What all rounds let through and what is in memory add up to all gradients."""
    for compressor in CASES:
        # What two stages leave out is in two memories: test_two_stage.py adds up both.
        if not isinstance(compressor, ErrorFeedback) or isinstance(compressor.inner, TwoStage):
            continue
        with subtests.test(f"{compressor}"):
            memories = [TensorStates()] * 3
            total = {name: torch.zeros(x.shape) for name, x in workers(1)[0].items()}
            passed = {name: x.clone() for name, x in total.items()}
            for step in range(6):
                rows = workers(3, seed=10 * step)
                means, memories = simulate(compressor, rows, memories)
                for name in ("weight", "bias"):
                    total[name] += torch.stack([row[name] for row in rows]).mean(dim=0)
                    passed[name] += means[0][name]
            for name in ("weight", "bias"):
                left = torch.stack([memory.states[name][0] for memory in memories]).mean(dim=0)
                torch.testing.assert_close(passed[name] + left, total[name], rtol=1e-5, atol=1e-5)


def test_what_halves_round_off_is_not_lost_either():
    """The memory is as wide as arithmetic: a sum of halves in halves would come to a halt."""
    compressor, memories, passed = ErrorFeedback(TopK(ratio=0.1)), [TensorStates()], torch.zeros(40)
    x = normal(40, dtype=torch.bfloat16)
    for _ in range(200):
        means, memories = simulate(compressor, [{"w": x}], memories)
        passed += means[0]["w"]
    torch.testing.assert_close(
        passed + memories[0].states["w"][0], 200 * x.float(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    "compressor",
    [RandomK(ratio=0.3), RandomBlock(ratio=0.3, rescale=False), HalfPrecision("bfloat16")],
    ids=repr,
)
def test_adding_on_the_way_gives_what_gathering_gives(compressor):
    class Gathered(type(compressor)):
        @property
        def reducible(self):
            return False

    gathered = Gathered(**vars(compressor))
    rows = [{"w": row["weight"]} for row in workers(4)]
    by_sum, _ = simulate(compressor, rows, [TensorStates()] * 4)
    by_list, _ = simulate(gathered, rows, [TensorStates()] * 4)
    tolerance = 1e-6 if not isinstance(compressor, HalfPrecision) else 2e-2
    torch.testing.assert_close(by_sum[0]["w"], by_list[0]["w"], rtol=0, atol=tolerance)


def test_ternary_sums_need_one_byte_up_to_127_workers():
    for num_workers, dtype in ((127, torch.int8), (128, torch.int32)):
        part = ExchangeContext(0, 0, 0, num_workers, ("w",))
        asked = TernGrad().exchange([normal(5)], [()], part)
        scale = next(asked)
        assert isinstance(scale, AllReduce)
        assert scale.largest
        assert asked.send(scale.tensor).tensor.dtype == dtype


ABSOLUTE = (HalfPrecision, SignSGD, Threshold)  # made for values of one range, or of one size


def absolute(compressor):
    inner = getattr(compressor, "inner", None)
    own = isinstance(compressor, ABSOLUTE) or getattr(compressor, "clip", None) == 1.0
    halves = getattr(compressor, "values", "same") in ("float16", "bfloat16")
    return own or halves or (inner is not None and absolute(inner))


@every
def test_a_power_of_two_changes_nothing_but_the_scale(compressors, subtests):
    """Norms whose squares over- or underflow included; no message turns into zeros."""
    scales = {
        torch.float32: (-100, -70, -40, 40, 70, 100, 120),
        torch.float64: (-900, -600, -300, 300, 600, 900, 1000),
    }
    for compressor in compressors:
        for dtype, exponents in scales.items() if not absolute(compressor) else ():
            rows = [normal(9, 14, seed=seed, dtype=dtype) for seed in range(2)]

            def rounded(scale, compressor=compressor, rows=rows):
                given = [{"w": row * scale} for row in rows]
                memories = [TensorStates(), TensorStates()]
                for _ in range(3):
                    means, memories = simulate(compressor, given, memories)
                message, _ = compressor.update(
                    rows[0] * scale, compressor.init(rows[0]), generator(4)
                )
                return torch.stack([means[0]["w"], compressor.decode(message)]) / scale

            wanted = rounded(1.0)
            for exponent in exponents:
                with subtests.test(f"{compressor}, {dtype}, {exponent}"):
                    torch.testing.assert_close(rounded(2.0**exponent), wanted, rtol=1e-4, atol=1e-4)
