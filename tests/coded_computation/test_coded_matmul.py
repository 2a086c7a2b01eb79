"""Products from any k of n workers, whichever they are."""

import itertools
import pickle
import threading
import warnings
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.coded_computation import CodedLeastSquares, CodedMatmul
from phalanx.errors import DecodeError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def sparse(matrix, keep=0.05):
    mask = torch.rand(matrix.shape, generator=seeded(9)) < keep
    coo = (matrix * mask).to_sparse_coo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return coo.to_sparse_csr()


def results_of(coded, x):
    return torch.stack([shard @ x for shard in coded.shards])


def flags(num_workers, arrived):
    mask = torch.zeros(num_workers, dtype=torch.bool)
    mask[list(arrived)] = True
    return mask


def error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


SIZES = [(n, k) for n in range(1, 9) for k in range(1, n + 1)]


def test_any_k_results_are_enough(subtests):
    for num_workers, num_blocks in SIZES:
        with subtests.test(num_workers=num_workers, num_blocks=num_blocks):
            coded = CodedMatmul(num_workers, num_blocks).encode(matrix := random(17, 5))
            x = random(5, seed=1)
            results = results_of(coded, x)
            for arrived in itertools.combinations(range(num_workers), num_blocks):
                mask = flags(num_workers, arrived)
                heard = torch.where(mask[:, None], results, float("nan"))
                product = coded.decode(heard, mask)
                assert error(product.value, matrix @ x) <= 1e-9
                assert not product.suspects.any()
                assert 1 <= product.condition <= coded.code.worst_condition() * 1.001


def test_fewer_are_an_error_that_names_the_missing(subtests):
    for num_workers, num_blocks in SIZES:
        with subtests.test(num_workers=num_workers, num_blocks=num_blocks):
            code = CodedMatmul(num_workers, num_blocks)
            coded = code.encode(random(9, 3))
            mask = flags(num_workers, range(num_workers - num_blocks + 1, num_workers))
            assert not code.can_decode(mask)
            with pytest.raises(DecodeError, match=f"a product of {num_blocks} blocks") as caught:
                coded.decode(results_of(coded, random(3)), mask)
            assert caught.value.workers == list(range(num_workers - num_blocks + 1))
            assert caught.value.bound == num_workers - num_blocks
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@given(
    st.integers(1, 12),
    st.data(),
    st.integers(1, 40),
    st.sampled_from([(), (1,), (4,)]),
    st.booleans(),
)
def test_shapes_extra_results_and_sparse_matrices(num_workers, data, rows, columns, is_sparse):
    num_blocks = data.draw(st.integers(1, num_workers))
    count = data.draw(st.integers(num_blocks, num_workers))
    arrived = data.draw(st.permutations(range(num_workers)))[:count]
    matrix, x = random(rows, 6), random(6, *columns, seed=2)
    given_matrix = sparse(matrix, 0.3) if is_sparse else matrix
    coded = CodedMatmul(num_workers, num_blocks).encode(given_matrix)
    product = coded.decode(results_of(coded, x), flags(num_workers, arrived))
    expected = given_matrix.to_dense() @ x
    assert product.value.shape == expected.shape
    assert (product.value - expected).norm() <= 1e-9 * (1 + expected.norm())


def test_dtypes_are_kept_and_rounding_is_all_that_is_lost(subtests):
    cases = [
        (torch.float16, 2e-2),
        (torch.bfloat16, 1e-1),
        (torch.float32, 1e-5),
        (torch.float64, 1e-12),
    ]
    for dtype, accuracy in cases:
        with subtests.test(dtype=dtype, accuracy=accuracy):
            matrix, x = random(70, 9, dtype=dtype), random(9, dtype=dtype, seed=1)
            coded = CodedMatmul(num_workers=5, num_blocks=3).encode(matrix)
            assert {shard.dtype for shard in coded.shards} == {dtype}
            product = coded.decode(results_of(coded, x), flags(5, [1, 3, 4]))
            assert product.value.dtype == dtype
            assert error(product.value, matrix.double() @ x.double()) <= accuracy


def test_what_the_first_workers_send_is_copied_not_computed():
    matrix, x = random(21, 4, dtype=torch.float32), random(4, dtype=torch.float32)
    coded = CodedMatmul(num_workers=5, num_blocks=3).encode(matrix)
    results = results_of(coded, x)
    product = coded.decode(results, flags(5, [0, 1, 2]))
    assert product.value.equal(results[:3].flatten())
    assert product.condition == 1.0
    assert product.value.data_ptr() != results.data_ptr()
    assert coded.decode(results, flags(5, [0, 2, 4])).value[:7].equal(results[0])
    assert coded.shards[0].data_ptr() == matrix.data_ptr()  # no copy of the matrix


def test_nothing_that_came_in_is_overwritten():
    coded = CodedMatmul(num_workers=4, num_blocks=2).encode(random(8, 3))
    results = results_of(coded, random(3))
    before = results.clone()
    coded.decode(results, flags(4, [2, 3]))
    assert results.equal(before)


def test_results_that_are_not_finite_are_named_and_left_out(subtests):
    for garbage in [float("nan"), float("inf")]:
        with subtests.test(garbage=garbage):
            matrix, x = random(12, 3), random(3)
            coded = CodedMatmul(num_workers=6, num_blocks=4).encode(matrix)
            results = results_of(coded, x)
            results[1, -1] = garbage
            product = coded.decode(results)
            assert error(product.value, matrix @ x) <= 1e-9
            assert product.suspects.nonzero().flatten().tolist() == [1]
            results[[0, 2]] = garbage
            with pytest.raises(DecodeError, match="missing: 0, 1, 2"):
                coded.decode(results)


def test_sparse_shards_stay_sparse_where_that_is_smaller():
    code = CodedMatmul(num_workers=6, num_blocks=4)
    thin = code.encode(sparse(random(400, 300, dtype=torch.float32), keep=0.01))
    assert [shard.layout for shard in thin.shards] == [torch.sparse_csr] * 6
    entries = [shard.values().numel() for shard in thin.shards]
    assert max(entries[:4]) < 500 < 1000 < min(entries[4:])  # up to k = 4 times as many
    thick = code.encode(sparse(random(400, 300, dtype=torch.float32), keep=0.2))
    assert [shard.layout for shard in thick.shards] == [torch.sparse_csr] * 4 + [torch.strided] * 2


def test_conditioning_is_good_up_to_fifty_workers():
    """Measured on sampled sets; Chebyshev's nodes lose all digits of float64 on the way."""
    for num_workers, num_blocks in [(10, 7), (20, 14), (50, 35), (50, 25)]:
        assert CodedMatmul(num_workers, num_blocks).worst_condition(300) < 1e5
    assert CodedMatmul(10, 7, parity="chebyshev").worst_condition() < 1e4
    assert CodedMatmul(50, 35, parity="chebyshev").worst_condition(300) > 1e10


def test_chebyshev_decodes_too():
    matrix, x = random(30, 4), random(4)
    coded = CodedMatmul(8, 5, parity="chebyshev").encode(matrix)
    for arrived in itertools.combinations(range(8), 5):
        product = coded.decode(results_of(coded, x), flags(8, arrived))
        assert error(product.value, matrix @ x) <= 1e-9


def test_codes_are_values():
    code = CodedMatmul(6, 4, seed=3)
    assert code.weights.equal(CodedMatmul(6, 4, seed=3).weights)
    assert not code.weights.equal(CodedMatmul(6, 4, seed=4).weights)
    again = pickle.loads(pickle.dumps(code))
    assert again == code
    assert hash(again) == hash(code)
    assert code.weights.equal(code.weights.float().double())  # encoding rounds none of them


class Held(Executor):
    """Runs what is asked at once, but some tasks never, or to a failure."""

    def __init__(self, held=(), failing=()):
        self.held, self.failing, self.futures = held, failing, []

    def submit(self, task, *arguments):
        future, worker = Future(), len(self.futures)
        self.futures.append(future)
        if worker in self.failing:
            future.set_exception(OSError(f"worker {worker} is gone"))
        elif worker not in self.held:
            future.set_result(task(*arguments))
        return future


def test_the_fastest_are_taken_and_the_rest_is_cancelled():
    matrix, x = random(40, 6), random(6)
    coded = CodedMatmul(num_workers=8, num_blocks=5).encode(matrix)
    executor = Held(held=(0, 3, 6))
    assert error(coded.multiply(x, executor).value, matrix @ x) <= 1e-9
    assert [future.cancelled() for future in executor.futures] == [i in (0, 3, 6) for i in range(8)]


def test_results_that_cannot_be_are_named():
    lies = [lambda y: y[1:], lambda y: "nonsense", lambda y: y / 0]

    class Lying(Held):
        def submit(self, task, *arguments):
            worker = len(self.futures)
            lie = lies[worker] if worker < len(lies) else lambda y: y
            return super().submit(lambda *given: lie(task(*given)), *arguments)

    matrix, x = random(40, 6), random(6)
    product = CodedMatmul(num_workers=6, num_blocks=3).encode(matrix).multiply(x, Lying())
    assert error(product.value, matrix @ x) <= 1e-9
    assert product.suspects.tolist() == [True] * 3 + [False] * 3


def test_failures_are_erasures_until_there_are_too_many():
    matrix, x = random(40, 6), random(6)
    coded = CodedMatmul(num_workers=5, num_blocks=3).encode(matrix)
    assert error(coded.multiply(x, Held(failing=(0, 2))).value, matrix @ x) <= 1e-9
    with pytest.raises(DecodeError, match="missing: 0, 2, 4") as caught:
        coded.multiply(x, Held(failing=(0, 2, 4)))
    assert isinstance(caught.value.__cause__, OSError)


def test_threads_that_lag_are_not_waited_for():
    released = threading.Event()
    matrix, x = random(40, 6), random(6)
    coded = CodedMatmul(num_workers=4, num_blocks=3).encode(matrix)

    class Lagging(ThreadPoolExecutor):
        asked = 0

        def submit(self, task, *arguments):
            self.asked += 1
            if self.asked == 1:  # the first worker
                return super().submit(lambda: (released.wait(30), task(*arguments))[1])
            return super().submit(task, *arguments)

    with Lagging(max_workers=4) as executor:
        assert error(coded.multiply(x, executor).value, matrix @ x) <= 1e-9
        released.set()


def test_least_squares_by_coded_products_descends_to_the_solution():
    matrix = random(60, 4)
    solution = random(4, seed=5)
    problem = CodedLeastSquares.encode(CodedMatmul(6, 4), matrix, matrix @ solution)

    def times(coded, x):
        return coded.decode(results_of(coded, x), flags(6, [0, 2, 4, 5])).value

    x = torch.zeros(4, dtype=torch.float64)
    for _ in range(300):
        x -= 0.5 * problem.gradient(x, times)
    assert error(x, solution) <= 1e-9
    thin = CodedLeastSquares.encode(
        CodedMatmul(6, 4), sparse(matrix, 0.2), torch.zeros(60).double()
    )
    dense = thin.matrix.decode(results_of(thin.matrix, torch.eye(4).double())).value
    expected = dense.T @ (dense @ solution) / 60
    assert error(thin.gradient(solution, times), expected) <= 1e-9
    with pytest.raises(ValueError, match="targets must have one entry for each of 60 rows"):
        CodedLeastSquares.encode(CodedMatmul(6, 4), matrix, torch.zeros(61).double())


def test_bad_arguments_are_refused(subtests):
    cases = [
        (lambda: CodedMatmul(5, 6), "num_blocks must be from 1 to num_workers = 5, got 6"),
        (lambda: CodedMatmul(5, 0), "num_blocks must be from 1 to num_workers = 5, got 0"),
        (lambda: CodedMatmul().encode(torch.ones(0, 3)), "not empty, got shape"),
        (
            lambda: CodedMatmul(3, 2).encode(torch.ones(4, 3)).table(torch.ones(4)),
            "x must be a vector or a matrix of 3 rows of torch.float32, got shape",
        ),
        (
            lambda: CodedMatmul(3, 2).encode(torch.ones(4, 3)).table(torch.ones(3).double()),
            "got shape .3,. of torch.float64",
        ),
        (
            lambda: CodedMatmul(3, 2).decode(torch.ones(2, 2), 4),
            "results and arrived must have one entry for each of 3 workers",
        ),
    ]
    for call, rule in cases:
        with subtests.test(call=call, rule=rule), pytest.raises(ValueError, match=rule):
            call()
