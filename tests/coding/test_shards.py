"""Codes that decode shards of the columns come to what they make of the whole messages."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from phalanx.coding import (
    BernoulliGradientCode,
    CyclicRepetition,
    DracoCyclic,
    DracoRepetition,
    ErasureHead,
    FractionalRepetition,
)
from phalanx.columns import Shard
from phalanx.ddp.sharded import cut
from phalanx.errors import DecodeError
from phalanx.randomness import generator

BYZANTINE_CODES = [
    DracoRepetition(7, 1),
    DracoRepetition(7, 1, tolerance=1e-5),
    DracoRepetition(7, 3, partitions="group"),
    DracoCyclic(7, 2),
]
STRAGGLER_CODES = [
    CyclicRepetition(7, 2),
    FractionalRepetition(6, 2),
    ErasureHead(8),
    BernoulliGradientCode(7),
]


def in_shards(code, messages, number):
    """What each shard answers, or the error it raises: threads that add up as ranks do."""
    parts, barrier = [None] * number, threading.Barrier(number, timeout=20)

    def decode(index):
        def add_up(part):
            parts[index] = part
            barrier.wait()
            total = sum(parts[1:], parts[0].clone())
            barrier.wait()
            return total

        columns = cut(messages.shape[1], number)[index]
        try:
            return code.decode(messages[:, columns], shard=Shard(messages.shape[1], add_up))
        except DecodeError as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(decode, range(number)))


def messages_of(code, dim=11):
    gradients = torch.randn(code.num_partitions, dim, generator=generator(5, "gradients"))
    return code.encode_all([gradients]), gradients.mean(dim=0)


def agrees(code, messages, mean=None, suspects=(), shards=(1, 3, 13)):
    """Decodes in shards, some of them without a column, and compares with the whole."""
    expected = code.decode(messages)
    assert expected.suspects.nonzero().flatten().tolist() == list(suspects)
    for number in shards:
        found = in_shards(code, messages, number)
        for one in found:
            assert one.suspects.equal(expected.suspects)
            assert one.error == pytest.approx(expected.error, rel=10)
        gradient = torch.cat([one.gradient for one in found])
        if isinstance(code, DracoRepetition):
            assert gradient.equal(expected.gradient)
        torch.testing.assert_close(gradient, expected.gradient, rtol=1e-4, atol=1e-5)
        if mean is not None:
            torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("code", BYZANTINE_CODES, ids=repr)
def test_who_lies_in_one_shard_loses_in_all(code, subtests):
    honest, mean = messages_of(code)
    with subtests.test("nobody"):
        agrees(code, honest, mean)
    for what in (100.0, torch.nan, torch.inf):
        with subtests.test(what=what):
            messages = honest.clone()
            messages[2, 4] = what  # one number, in one shard of several
            agrees(code, messages, mean, [2])


def test_voters_that_agree_in_no_two_shards_are_no_majority():
    code = DracoRepetition(3, 1)
    messages, _ = messages_of(code, dim=3)
    messages += torch.eye(3)  # in every shard, two of three agree
    assert all(isinstance(one, DecodeError) for one in in_shards(code, messages, 3))


@pytest.mark.parametrize("code", STRAGGLER_CODES, ids=repr)
def test_a_message_that_is_not_finite_in_one_shard_is_missing_in_all(code, subtests):
    honest, mean = messages_of(code)
    with subtests.test("nobody"):
        agrees(code, honest, None if code.decode(honest).error else mean)
    with subtests.test("one"):
        messages = honest.clone()
        messages[1, 4] = torch.nan
        agrees(code, messages, None, [1])


@pytest.mark.parametrize(
    "code", [DracoRepetition(3, 1), DracoCyclic(5, 1), CyclicRepetition(5, 1)], ids=repr
)
def test_more_than_the_bound_is_an_error_in_all_shards(code):
    messages, _ = messages_of(code)
    messages[0, 3], messages[1, 6], messages[2, 10] = torch.nan, torch.nan, torch.inf
    found = in_shards(code, messages, 4)
    assert all(isinstance(one, DecodeError) for one in found)


def test_a_sum_that_overflows_in_one_shard_is_an_error_in_all():
    code = CyclicRepetition(5, 2)
    messages, _ = messages_of(code)
    here = torch.tensor([False, False, True, True, True])
    messages[:, 3] = torch.finfo(torch.float32).max * code.coefficients(here).sign()
    messages[~here] = torch.nan
    with pytest.raises(DecodeError, match="but their sum overflows") as expected:
        code.decode(messages)
    for one in in_shards(code, messages, 4):
        assert isinstance(one, DecodeError)
        assert str(one) == str(expected.value)
