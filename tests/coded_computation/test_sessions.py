"""Coded products and coded shuffling with real worker processes."""

import os
import signal
import time

import pytest
import torch

from phalanx.coded_computation import (
    CodedLeastSquares,
    CodedMatmul,
    CodedShuffle,
    MatmulSession,
    ShuffleSession,
)
from phalanx.errors import DecodeError
from phalanx.training import Local, Ray


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_product_comes_from_the_workers_that_do_not_sleep(cluster):
    matrix, x = random(600, 40), random(40, seed=1)
    coded = CodedMatmul(num_workers=5, num_blocks=3).encode(matrix)
    with MatmulSession(Ray(), coded) as session:
        assert_close(session.multiply(coded, x).product.value, matrix @ x)
        delays = torch.tensor([30.0, 0.0, 0.0, 30.0, 0.0])
        for _ in range(3):  # who was cancelled is ready for the next product at once
            timed = session.multiply(coded, x, delays)
            assert timed.arrived.tolist() == [False, True, True, False, True]
            assert timed.duration_s < 10
            assert_close(timed.product.value, matrix @ x)
        timed = session.multiply(coded, random(40, 3, seed=2), torch.tensor([0, 0, 30.0, 0, 30.0]))
        assert_close(timed.product.value, matrix @ random(40, 3, seed=2))
        assert timed.duration_s < 10


@pytest.mark.slow
def test_the_killed_are_erasures_and_come_back_with_their_shards(cluster):
    matrix, x = random(60, 4), random(4, seed=1)
    coded = CodedMatmul(num_workers=3, num_blocks=2).encode(matrix)
    with MatmulSession(Ray(deadline_s=5.0), coded) as session:
        pids = session._session.pids
        os.kill(pids[0], signal.SIGKILL)
        timed = session.multiply(coded, x)
        assert_close(timed.product.value, matrix @ x)
        end = time.monotonic() + 60
        while session.multiply(coded, x, torch.tensor([0.0, 1.0, 1.0])).arrived[0].logical_not():
            assert time.monotonic() < end
        with pytest.raises(DecodeError, match="missing: 1, 2"):
            session.multiply(coded, x, torch.tensor([0.0, 30.0, 30.0]))


@pytest.mark.slow
def test_least_squares_descend_with_a_worker_that_always_sleeps(cluster):
    matrix, solution = random(200, 5), random(5, seed=3)
    problem = CodedLeastSquares.encode(CodedMatmul(3, 2), matrix, matrix @ solution)
    delays = torch.tensor([60.0, 0.0, 0.0])
    with MatmulSession(Ray(), problem.matrix, problem.transpose) as session:
        x = torch.zeros(5, dtype=torch.float64)
        for _ in range(60):
            x -= 0.7 * problem.gradient(
                x, lambda coded, v: session.multiply(coded, v, delays).product.value
            )
        torch.testing.assert_close(x, solution, rtol=1e-6, atol=1e-6)
        with pytest.raises(ValueError, match="matrix must be one that the session was started"):
            session.multiply(CodedMatmul(3, 2).encode(matrix), x)


@pytest.mark.slow
def test_caches_on_workers_decode_every_epoch_and_the_killed_are_refilled(cluster):
    rows = torch.randn(60, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(60)
    shuffle = CodedShuffle(num_workers=3, num_rows=60, cache_fraction=0.6)
    with ShuffleSession(Ray(deadline_s=20.0), shuffle, [rows, labels]) as session:
        for epoch in range(1, 5):
            if epoch == 3:
                os.kill(session.map(lambda x, y: os.getpid())[1], signal.SIGKILL)
            traffic = session.advance()
            assert traffic.epoch == epoch
            assert traffic.coded_bytes < traffic.uncoded_bytes
            assert traffic.coded_bytes % 22 == 0
            assert traffic.refilled == ((1,) if epoch == 3 else ())
            assert traffic.refilled_bytes == (36 * 22 if epoch == 3 else 0)
            for worker, (x, y) in enumerate(session.map(lambda x, y: (x, y))):
                share = shuffle.share(worker, epoch)
                assert y.equal(share)
                assert x.view(torch.int16).equal(rows[share].view(torch.int16))


def test_one_process_gives_the_same_products_and_caches_on_a_virtual_clock():
    matrix, x = random(60, 4), random(4, seed=1)
    coded = CodedMatmul(num_workers=5, num_blocks=3).encode(matrix)
    with MatmulSession(Local(), coded) as session:
        timed = session.multiply(coded, x, torch.tensor([9.0, 1.0, 2.0, 3.0, 8.0]))
        assert timed.arrived.tolist() == [False, True, True, True, False]
        assert timed.duration_s == 3.0
        assert_close(timed.product.value, matrix @ x)
    with MatmulSession(Local(deadline_s=1.5), coded) as session, pytest.raises(DecodeError):
        session.multiply(coded, x, torch.tensor([9.0, 1.0, 2.0, 3.0, 8.0]))
    shuffle = CodedShuffle(num_workers=3, num_rows=60, cache_fraction=0.6)
    with ShuffleSession(Local(), shuffle, [torch.arange(60)]) as session:
        for epoch in range(1, 4):
            delivery = session.advance()
            assert (delivery.epoch, delivery.refilled) == (epoch, ())
            for worker, rows in enumerate(session.map(lambda rows: rows)):
                assert rows.equal(shuffle.share(worker, epoch))


def test_what_does_not_fit_is_refused_before_an_engine_starts():
    with pytest.raises(ValueError, match="matrices must be at least 1, coded for equally many"):
        MatmulSession(Local())
    with pytest.raises(ValueError, match="tensors must have num_rows = 1000 rows, got 3"):
        ShuffleSession(Local(), CodedShuffle(), [torch.ones(3)])
