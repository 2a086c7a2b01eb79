"""Coded shuffling: the bytes arrive, and fewer are sent than without coding."""

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from phalanx.coded_computation import (
    CodedShuffle,
    CodedShuffleSampler,
    RowCache,
    pack_rows,
    unpack_rows,
)
from phalanx.coded_computation.packing import Wanted, pack

DTYPES = [
    torch.uint8,
    torch.bool,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]


def random_rows(num_rows, shape, dtype, seed=0):
    source = torch.Generator().manual_seed(seed)
    width = math.prod(shape) * dtype.itemsize
    noise = torch.randint(0, 256, (num_rows, width), generator=source, dtype=torch.uint8)
    if dtype == torch.bool:
        return (noise % 2).bool().reshape(num_rows, *shape)
    return noise.reshape(-1).view(dtype).reshape(num_rows, *shape)


def same_bytes(one, other):
    return one.dtype == other.dtype and pack_rows([one]).equal(pack_rows([other]))


def run(shuffle, content, epochs):
    """Delivers epoch after epoch; gives each plan, and what workers then hold."""
    caches = shuffle.start()
    held = [shuffle.fill(worker, content) for worker in range(shuffle.num_workers)]
    for epoch in range(1, epochs + 1):
        plan = shuffle.plan(epoch, caches)
        packets = shuffle.encode(plan, content)
        held = [shuffle.decode(plan, worker, packets, cache) for worker, cache in enumerate(held)]
        caches = shuffle.update(epoch, caches)
        yield plan, caches, held


@given(st.data())
def test_every_worker_holds_exactly_its_rows(data):
    num_workers = data.draw(st.integers(1, 12))
    num_rows = data.draw(st.integers(num_workers, 90))
    least = -(-num_rows // num_workers)
    capacity = data.draw(st.integers(least, num_rows))
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.sampled_from([(), (1,), (3,), (7, 3), (5, 1, 3), (0,)]))
    shuffle = CodedShuffle(
        num_workers,
        num_rows,
        cache_fraction=capacity / num_rows,
        group_size=data.draw(st.integers(1, 10)),
        seed=data.draw(st.integers(0, 9)),
    )
    rows = random_rows(num_rows, shape, dtype)
    content = pack_rows([rows])
    for plan, caches, held in run(shuffle, content, epochs=2):
        assert plan.num_packets <= plan.num_needed
        assert (caches.sum(dim=1) <= capacity).all()
        for worker, cache in enumerate(held):
            assert cache.rows.equal(caches[worker].nonzero().flatten())
            (found,) = unpack_rows(cache.content, [rows])
            assert same_bytes(found, rows[cache.rows])
            assert caches[worker, shuffle.share(worker, plan.epoch)].all()


@given(st.integers(2, 7), st.data())
def test_packets_can_be_decoded_and_hold_every_wanted_row_once(num_members, data):
    sets = st.tuples(st.integers(0, num_members - 1), st.integers(0, 2**num_members - 1))
    drawn = data.draw(st.lists(sets, max_size=60))
    wanted = [
        Wanted(member, row, holders & ~(1 << member)) for row, (member, holders) in enumerate(drawn)
    ]
    packets = pack(wanted)
    sent = [(member, row) for packet in packets for member, row in packet.items()]
    assert sorted(sent) == sorted((one.member, one.row) for one in wanted)
    for packet in packets:
        for member, other in itertools.permutations(packet, 2):
            assert wanted[packet[other]].holders >> member & 1


def test_a_perfect_packing_is_found():
    wanted = [Wanted(m, 10 * n + m, 0b1111 & ~(1 << m)) for n in range(5) for m in range(4)]
    assert sorted(map(len, pack(wanted))) == [4] * 5
    assert pack([]) == []


def law(n, q, fraction):
    """Rows sent for many rows, as the paper has it."""
    p = (fraction - 1 / n) / (1 - 1 / n)
    return q * (1 - p) / (n * p) ** 2 * ((1 - p) ** n + n * p - 1)


def test_the_ideal_is_the_papers_formula():
    for n, fraction in [(5, 0.4), (10, 0.3), (8, 0.9)]:
        shuffle = CodedShuffle(n, 10_000, fraction)
        assert shuffle.ideal_packets == pytest.approx(law(n, 10_000, fraction))
    assert CodedShuffle(5, 5000, 0.4).ideal_gain == pytest.approx(2.57, abs=0.01)
    assert CodedShuffle(10, 5000, 0.3).ideal_gain == pytest.approx(3.4, abs=0.02)
    assert CodedShuffle(20, 2000, 0.5, group_size=20).ideal_gain == pytest.approx(10, rel=0.02)
    assert CodedShuffle(5, 5000, 0.2).ideal_gain == pytest.approx(2.0)  # no excess: pairs
    assert CodedShuffle(5, 5000, 1.0).ideal_gain == 1.0
    for n, fraction in [(20, 0.4), (50, 0.5)]:  # 1 + n alpha
        many = CodedShuffle(n, 10_000, fraction, group_size=n)
        assert many.ideal_gain == pytest.approx(n * fraction, rel=0.06)


def test_what_is_sent_is_within_five_percent_of_the_ideal():
    shuffle = CodedShuffle(num_workers=5, num_rows=5000, cache_fraction=0.4)
    sent, caches = [], shuffle.start()
    for epoch in range(1, 7):
        sent.append(shuffle.plan(epoch, caches).num_packets)
        caches = shuffle.update(epoch, caches)
    assert sent[0] <= 1.05 * shuffle.ideal_packets
    assert sum(sent) / 6 <= 1.05 * shuffle.ideal_packets
    assert sum(sent) / 6 >= 0.95 * shuffle.ideal_packets


def test_few_rows_gain_less_than_the_ideal_and_more_than_a_greedy_cover(subtests):
    cases = [(10, 600, 0.3, 2.2), (10, 3000, 0.5, 3.5), (30, 6000, 0.3, 2.4)]
    for num_workers, num_rows, fraction, gain in cases:
        with subtests.test(
            num_workers=num_workers, num_rows=num_rows, fraction=fraction, gain=gain
        ):
            shuffle = CodedShuffle(num_workers, num_rows, fraction)
            plan = shuffle.plan(1, shuffle.start())
            assert gain <= plan.gain < shuffle.ideal_gain


def test_groups_are_few_and_of_one_size():
    assert CodedShuffle(10, 100, 0.2).groups == (range(10),)
    assert [len(group) for group in CodedShuffle(23, 100, 0.2).groups] == [7, 8, 8]
    assert CodedShuffle(30, 6000, 0.3).ideal_packets > law(30, 6000, 0.3)


def test_caches_do_not_wear_out():
    """The share of each epoch is random, and so is what is kept: no row is favoured for long."""
    shuffle = CodedShuffle(num_workers=6, num_rows=600, cache_fraction=0.5)
    caches = shuffle.start()
    counts = torch.zeros(600)
    for epoch in range(1, 60):
        caches = shuffle.update(epoch, caches)
        assert (caches.sum(dim=1) == 300).all()
        counts += caches.sum(dim=0)
    assert (counts / 59).sub(3).abs().max() < 1.0  # half of 6 workers hold a row, on average


def test_shares_partition_the_rows_and_change():
    shuffle = CodedShuffle(num_workers=4, num_rows=10, cache_fraction=0.5)
    for epoch in range(3):
        shares = [shuffle.share(worker, epoch) for worker in range(4)]
        assert torch.cat(shares).sort().values.equal(torch.arange(10))
        assert sorted(map(len, shares)) == [2, 2, 3, 3]
    assert not shuffle.owners(1).equal(shuffle.owners(2))
    again = pickle.loads(pickle.dumps(shuffle))
    assert again == shuffle
    assert again.owners(1).equal(shuffle.owners(1))


def test_the_sampler_gives_each_worker_its_rows():
    shuffle = CodedShuffle(num_workers=3, num_rows=11, cache_fraction=0.5)
    dataset = TensorDataset(torch.arange(11))
    for epoch in (0, 5):
        seen = []
        for worker in range(3):
            sampler = CodedShuffleSampler(shuffle, worker)
            sampler.set_epoch(epoch)
            loaded = torch.cat([x for (x,) in DataLoader(dataset, batch_size=2, sampler=sampler)])
            assert loaded.sort().values.equal(shuffle.share(worker, epoch))
            assert len(sampler) == len(loaded)
            assert list(sampler) == list(sampler)
            seen += loaded.tolist()
        assert sorted(seen) == list(range(11))
    with pytest.raises(ValueError, match="worker must be from 0 to 2, got 3"):
        CodedShuffleSampler(shuffle, 3)


@given(st.sampled_from(DTYPES), st.sampled_from([(), (3,), (2, 5), (0,)]), st.integers(0, 9))
def test_rows_of_any_dtype_survive_as_bytes(dtype, shape, num_rows):
    rows, labels = random_rows(num_rows, shape, dtype), torch.arange(num_rows)
    content = pack_rows([rows, labels])
    assert content.shape == (num_rows, math.prod(shape) * dtype.itemsize + 8)
    found, numbers = unpack_rows(content, [rows, labels])
    assert same_bytes(found, rows)
    assert found.shape == rows.shape
    assert numbers.equal(labels)


def test_views_are_packed_as_what_they_show():
    table = torch.arange(12.0).reshape(3, 4)
    assert same_bytes(unpack_rows(pack_rows([table.T]), [table.T])[0], table.T.contiguous())
    turned = torch.tensor([[1 + 2j]]).conj()
    assert unpack_rows(pack_rows([turned]), [turned])[0].item() == 1 - 2j


def test_bad_arguments_are_refused(subtests):
    cases = [
        (lambda: CodedShuffle(0, 10), "num_workers must be at least 1, got 0"),
        (lambda: CodedShuffle(5, 4), "num_rows must be at least num_workers = 5, got 4"),
        (lambda: CodedShuffle(5, 50, 0.19), "hold a worker's own 10 of 50 rows, got 0.19"),
        (lambda: CodedShuffle(5, 50, 1.01), "cache_fraction must be at most 1 .* got 1.01"),
        (lambda: CodedShuffle(5, 50, group_size=0), "group_size must be from 1 to 62, got 0"),
        (
            lambda: CodedShuffle(5, 50).plan(1, torch.ones(5, 49, dtype=torch.bool)),
            r"caches must have shape \(5, 50\), got \(5, 49\)",
        ),
        (lambda: pack_rows([]), "tensors must have rows, as many each"),
        (lambda: pack_rows([torch.ones(2), torch.ones(3)]), "tensors must have rows"),
        (
            lambda: unpack_rows(torch.ones(2, 3, dtype=torch.uint8), [torch.ones(1)]),
            "content must have 4 bytes a row, got 3",
        ),
    ]
    for call, rule in cases:
        with subtests.test(call=call, rule=rule), pytest.raises(ValueError, match=rule):
            call()


def test_packets_and_caches_that_are_not_the_plans_are_refused():
    shuffle = CodedShuffle(num_workers=3, num_rows=30, cache_fraction=0.5)
    content = pack_rows([torch.arange(30)])
    plan = shuffle.plan(1, shuffle.start())
    packets, cache = shuffle.encode(plan, content), shuffle.fill(0, content)
    with pytest.raises(ValueError, match="packets must have shape"):
        shuffle.decode(plan, 0, packets[1:], cache)
    with pytest.raises(ValueError, match="rows must be held by the cache"):
        shuffle.decode(plan, 0, packets, RowCache(cache.rows[:5], cache.content[:5]))
